"""Assignment equals its definition, on every table."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

import clipvp.mappings.assignment
from clipvp.mappings.assignment import assign_greedy, assign_optimal, assign_within
from clipvp.mappings.statistic import Counts
from clipvp.registry import UserError


def sums(table) -> Counts:
    """Return a dense table (S, T) as the sums that the assignments take."""
    return Counts.from_matrix(torch.as_tensor(table))


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
    result = assign_greedy(sums(counts))
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
    """Let cells be filtered in blocks of so many; small tables would need one block only."""
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
    assert assign_greedy(Counts(*shape)).tolist() == list(range(shape[1]))


def test_greedy_on_equal_counts_takes_the_diagonal():
    assert assign_greedy(sums(torch.full((7, 5), 3))).tolist() == [0, 1, 2, 3, 4]


def test_greedy_at_the_size_of_a_label_space_made_of_text():
    """81 templates x 397 classes: every cell not chosen gives way to a better one in its row or column."""
    num_source, num_target = 32157, 397
    counts = confused_counts(np.random.default_rng(1), num_source, num_target, 16000)
    chosen = assign_greedy(sums(counts)).numpy()
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
    counts = confused_counts(np.random.default_rng(2), 50, 9, 200)
    given = sums(counts)
    assign_greedy(given), assign_optimal(given), assign_within(given, torch.arange(50) % 9)
    assert torch.equal(given.rows(torch.arange(50)), torch.from_numpy(counts))


# Optimal assignment


def total(counts, index) -> int:
    return int(counts[np.asarray(index), np.arange(counts.shape[1])].sum())


def test_optimal_is_brute_force_on_small_tables():
    generator = np.random.default_rng(3)
    for _ in range(300):
        num_target = int(generator.integers(1, 5))
        num_source = num_target + int(generator.integers(0, 3))
        counts = random_counts(generator, num_source, num_target, 5, generator.random())
        index = assign_optimal(sums(counts))
        assert index.dtype == torch.int64 and len(set(index.tolist())) == num_target
        best = max(total(counts, pick) for pick in itertools.permutations(range(num_source), num_target))
        assert total(counts, index.numpy()) == best


@pytest.mark.parametrize("filled", [0.001, 0.02, 1.0])
def test_optimal_has_scipys_total_and_is_never_below_greedy(filled):
    generator = np.random.default_rng(4)
    for num_source in (40, 500, 2000):
        counts = random_counts(generator, num_source, 40, 20, filled)
        index = assign_optimal(sums(counts)).numpy()
        rows, columns = linear_sum_assignment(counts, maximize=True)
        assert len(set(index)) == 40
        assert total(counts, index) == counts[rows, columns].sum()
        assert total(counts, index) >= total(counts, assign_greedy(sums(counts)).numpy())


# Each class among its own labels


def within_by_definition(counts: np.ndarray, class_of: list[int]) -> list[int]:
    """Return for each class the first of its own labels with the largest count."""
    chosen = []
    for target in range(counts.shape[1]):
        own = [label for label, owner in enumerate(class_of) if owner == target]
        best = max(counts[label, target] for label in own)
        chosen.append(next(label for label in own if counts[label, target] == best))
    return chosen


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 10**6))
def test_within_gives_each_class_its_own_best_template(num_templates, num_target, seed):
    counts = np.random.default_rng(seed).integers(0, 3, (num_templates * num_target, num_target))
    index = assign_within(sums(counts), torch.arange(len(counts)) % num_target).tolist()
    for target, label in enumerate(index):
        own = [counts[template * num_target + target, target] for template in range(num_templates)]
        assert label == own.index(max(own)) * num_target + target  # the first of equals


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_within_is_its_definition_for_any_number_of_labels_a_class(data):
    num_target = data.draw(st.integers(1, 6))
    more = data.draw(st.lists(st.integers(0, num_target - 1), max_size=12))
    class_of = data.draw(st.permutations([*range(num_target), *more]))
    cell = st.sampled_from([0, 0, 1, 2, 2**40])
    row = st.lists(cell, min_size=num_target, max_size=num_target)
    counts = np.array(data.draw(st.lists(row, min_size=len(class_of), max_size=len(class_of))))
    index = assign_within(sums(counts), torch.tensor(class_of))
    assert index.dtype == torch.int64
    assert index.tolist() == within_by_definition(counts, class_of)


def test_within_on_a_large_ragged_label_space():
    generator = np.random.default_rng(6)
    class_of = np.concatenate([np.arange(200), generator.integers(0, 200, 4800)])
    generator.shuffle(class_of)
    counts = confused_counts(generator, 5000, 200, 20_000)
    index = assign_within(sums(counts), torch.from_numpy(class_of)).tolist()
    assert index == within_by_definition(counts, class_of.tolist())


# What is refused


@pytest.mark.parametrize("assign", [assign_greedy, assign_optimal])
def test_more_classes_than_labels_are_refused_with_both_numbers(assign):
    with pytest.raises(UserError, match="12 target classes.* has 10"):
        assign(Counts(10, 12))


def test_only_tables_of_counts_become_sums():
    with pytest.raises(ValueError, match="whole numbers"):
        sums(torch.rand(12, 10))
    with pytest.raises(ValueError, match="none below zero"):
        sums(torch.full((12, 10), -1))
    with pytest.raises(ValueError, match="a table"):
        sums(torch.ones(12, dtype=torch.int64))
