"""Counting and assignment are their definitions, on every table."""

import itertools
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

import clipvp.mappings.assignment
from clipvp.mappings.assignment import add_counts, assign_greedy, assign_optimal, assign_within, count_matrix
from clipvp.registry import UserError


def greedy_by_definition(counts: np.ndarray) -> list[int]:
    """Take the largest cell, map its label to its class, remove row and column, T times over."""
    table = counts.astype(np.int64).copy()
    num_source, num_target = table.shape
    chosen: dict[int, int] = {}
    while len(chosen) < num_target:
        place = int(table.argmax())  # the first of the largest: lowest source, then lowest target
        if table.flat[place] <= 0:
            break
        source, target = divmod(place, num_target)
        chosen[target] = source
        table[source, :] = -1
        table[:, target] = -1
    labels = [s for s in range(num_source) if s not in chosen.values()]
    classes = [t for t in range(num_target) if t not in chosen]
    chosen.update(zip(classes, labels))  # noqa: B905, more labels than classes
    return [chosen[target] for target in range(num_target)]


def check_greedy(counts: np.ndarray) -> None:
    result = assign_greedy(torch.from_numpy(counts))
    assert result.dtype == torch.int64 and result.shape == (counts.shape[1],)
    assert result.tolist() == greedy_by_definition(counts)


def random_counts(generator, num_source, num_target, most=4, filled=1.0) -> np.ndarray:
    counts = generator.integers(0, most + 1, (num_source, num_target))
    counts[generator.random(counts.shape) > filled] = 0
    if generator.random() < 0.3:
        counts[:, generator.integers(num_target)] = 0  # a class that was never seen
    if generator.random() < 0.3:
        counts[generator.integers(num_source)] = 0
    return counts


def confused_counts(generator, num_source, num_target, images) -> np.ndarray:
    """Counts as a frozen model gives them: a few labels take nearly everything."""
    favourites = (num_source * generator.random(images) ** 6).astype(int)
    targets = generator.integers(0, num_target, images)
    return np.bincount(favourites * num_target + targets, minlength=num_source * num_target).reshape(
        num_source, num_target
    )


@pytest.fixture(params=[None, 1, 2, 7, 40], ids=lambda block: f"block={block}")
def block(request, monkeypatch):
    """Have the largest cells sorted in blocks of so many, where small tables would need but one."""
    if request.param:
        monkeypatch.setattr(clipvp.mappings.assignment, "_BLOCK", request.param)


# Greedy assignment


def test_greedy_is_its_definition_on_thousands_of_small_tables(block):
    generator = np.random.default_rng(0)
    for _ in range(1000):
        num_target = int(generator.integers(1, 8))
        num_source = num_target + int(generator.integers(0, 9))
        most, filled = int(generator.integers(0, 5)), generator.random()
        check_greedy(random_counts(generator, num_source, num_target, most, filled))


@pytest.mark.parametrize("num_source", [30, 31, 100, 1000, 3000])
@pytest.mark.parametrize("filled", [0.001, 0.02, 1.0])
def test_greedy_is_its_definition_on_large_tables(num_source, filled, block):
    generator = np.random.default_rng(num_source)
    for most in (1, 3, 10**6):
        check_greedy(random_counts(generator, num_source, 30, most, filled))
    check_greedy(confused_counts(generator, num_source, 30, 900))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_greedy_is_its_definition_on_searched_tables(data):
    num_target = data.draw(st.integers(1, 6))
    num_source = num_target + data.draw(st.integers(0, 6))
    cell = st.sampled_from([0, 0, 0, 1, 1, 2, 3, 2**40])
    row = st.lists(cell, min_size=num_target, max_size=num_target)
    check_greedy(np.array(data.draw(st.lists(row, min_size=num_source, max_size=num_source))))


@pytest.mark.parametrize("shape", [(1, 1), (5, 5), (9, 4), (3000, 40)])
def test_greedy_on_nothing_counted_takes_the_first_labels_in_order(shape):
    assert assign_greedy(torch.zeros(shape, dtype=torch.int64)).tolist() == list(range(shape[1]))


def test_greedy_on_equal_counts_takes_the_diagonal():
    assert assign_greedy(torch.full((7, 5), 3)).tolist() == [0, 1, 2, 3, 4]


def test_greedy_at_the_size_of_a_label_space_made_of_text():
    """81 templates x 397 classes: every cell not chosen gives way to a better one in its row or column."""
    num_source, num_target = 32157, 397
    counts = confused_counts(np.random.default_rng(1), num_source, num_target, 16000)
    chosen = assign_greedy(torch.from_numpy(counts)).numpy()
    assert len(set(chosen)) == num_target
    place = np.arange(counts.size, dtype=np.int64).reshape(counts.shape)
    rank = counts * counts.size - place  # larger is better: the count, then the lower place
    best_of_target = rank[chosen, np.arange(num_target)]
    best_of_source = np.full(num_source, np.iinfo(np.int64).min)
    best_of_source[chosen] = best_of_target
    better = np.maximum(best_of_source[:, None], best_of_target[None, :])
    assert (rank <= better)[counts > 0].all()
    empty = counts[chosen, np.arange(num_target)] == 0
    used = set(chosen[~empty])
    rest = [label for label in range(num_source) if label not in used][: int(empty.sum())]
    assert chosen[empty].tolist() == rest


def test_assignments_leave_the_counts_as_they_are():
    counts = torch.from_numpy(confused_counts(np.random.default_rng(2), 50, 9, 200))
    before = counts.clone()
    assign_greedy(counts), assign_optimal(counts)
    assert torch.equal(counts, before)


# Optimal assignment


def total(counts, index) -> int:
    return int(counts[np.asarray(index), np.arange(counts.shape[1])].sum())


def test_optimal_is_brute_force_on_small_tables():
    generator = np.random.default_rng(3)
    for _ in range(300):
        num_target = int(generator.integers(1, 5))
        num_source = num_target + int(generator.integers(0, 3))
        counts = random_counts(generator, num_source, num_target, 5, generator.random())
        index = assign_optimal(torch.from_numpy(counts))
        assert index.dtype == torch.int64 and len(set(index.tolist())) == num_target
        best = max(total(counts, pick) for pick in itertools.permutations(range(num_source), num_target))
        assert total(counts, index.numpy()) == best


@pytest.mark.parametrize("filled", [0.001, 0.02, 1.0])
def test_optimal_has_scipys_total_and_is_never_below_greedy(filled):
    generator = np.random.default_rng(4)
    for num_source in (40, 500, 2000):
        counts = random_counts(generator, num_source, 40, 20, filled)
        index = assign_optimal(torch.from_numpy(counts)).numpy()
        rows, columns = linear_sum_assignment(counts, maximize=True)
        assert len(set(index)) == 40
        assert total(counts, index) == counts[rows, columns].sum()
        assert total(counts, index) >= total(counts, assign_greedy(torch.from_numpy(counts)).numpy())


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 10**6))
def test_within_gives_each_class_its_own_best_template(num_templates, num_target, seed):
    counts = np.random.default_rng(seed).integers(0, 3, (num_templates * num_target, num_target))
    index = assign_within(torch.from_numpy(counts)).tolist()
    for target, label in enumerate(index):
        own = [counts[template * num_target + target, target] for template in range(num_templates)]
        assert label == own.index(max(own)) * num_target + target  # the first of equals


@pytest.mark.parametrize("assign", [assign_greedy, assign_optimal])
def test_more_classes_than_labels_are_refused_with_both_numbers(assign):
    with pytest.raises(UserError, match="12 target classes.* has 10"):
        assign(torch.zeros(10, 12, dtype=torch.int64))
    with pytest.raises(ValueError, match="whole numbers"):
        assign(torch.rand(12, 10))
    with pytest.raises(ValueError, match="none below zero"):
        assign(torch.full((12, 10), -1))


# Counting


def logits_and_targets(count, num_source, num_target, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, num_source, generator=generator)
    return logits, torch.randint(num_target, (count,), generator=generator)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(1, 9), st.integers(1, 5), st.lists(st.integers(0, 40)))
def test_counts_are_the_product_of_one_hot_tables_whatever_the_batches(count, num_source, num_target, cuts):
    logits, targets = logits_and_targets(count, num_source, num_target)
    top1 = torch.nn.functional.one_hot(logits.argmax(1), num_source)
    expected = top1.T @ torch.nn.functional.one_hot(targets, num_target)
    edges = sorted({0, count, *(cut for cut in cuts if cut < count)})
    parts = [(logits[a:b], targets[a:b]) for a, b in itertools.pairwise(edges)]
    counts = count_matrix(iter(parts), num_source, num_target)
    assert counts.dtype == torch.int64 and torch.equal(counts, expected)
    assert counts.sum() == count
    shares = [count_matrix([part], num_source, num_target) for part in parts]  # as processes would
    assert torch.equal(sum(shares, torch.zeros_like(counts)), expected)


def test_a_label_with_the_top_score_counts_even_if_no_class_uses_it():
    logits = torch.tensor([[0.0, 1.0, 5.0], [0.0, 9.0, 5.0]])
    assert count_matrix([(logits, torch.tensor([1, 1]))], 3, 2).tolist() == [[0, 0], [0, 1], [0, 1]]


def test_only_one_batch_of_logits_exists_at_a_time():
    alive = []

    def batches():
        for seed in range(20):
            assert sum(ref() is not None for ref in alive) <= 1
            logits, targets = logits_and_targets(8, 50, 3, seed)
            alive.append(weakref.ref(logits))
            yield logits, targets
            del logits

    assert count_matrix(batches(), 50, 3).sum() == 160


@pytest.mark.parametrize("wrong", [-1, 3])
def test_targets_beyond_the_classes_are_refused(wrong):
    with pytest.raises(ValueError, match=rf"{min(wrong, 0)}\.\.{max(wrong, 0)} leave 0\.\.2"):
        count_matrix([(torch.rand(2, 5), torch.tensor([0, wrong]))], 5, 3)


def test_add_counts_adds_in_place():
    counts = torch.ones(3, 2, dtype=torch.int64)
    add_counts(counts, torch.eye(3), torch.tensor([0, 1, 1]))
    assert counts.tolist() == [[2, 1], [1, 2], [1, 2]]
