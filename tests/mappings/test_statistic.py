"""Sums by cell equal the dense table, whatever the batches, the processes and the resumes."""

import itertools
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

import clipvp.mappings.statistic
from clipvp.mappings.statistic import CellSums, Counts, gather, sum_over_processes


def logits_and_targets(count, num_source, num_target, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, num_source, generator=generator)
    return logits, torch.randint(num_target, (count,), generator=generator)


def dense(sums: CellSums) -> torch.Tensor:
    """Return the whole table (S, T)."""
    return sums.rows(torch.arange(sums.num_source))


def dense_counts(logits, targets, num_target) -> torch.Tensor:
    """Return the definition of the counts: the product of the one-hot tables of top-1 labels and classes."""
    top1 = torch.nn.functional.one_hot(logits.argmax(1), logits.shape[1])
    return top1.T @ torch.nn.functional.one_hot(targets, num_target)


@pytest.fixture(params=[None, 0, 3], ids=lambda most: f"waiting={most}")
def compaction(request, monkeypatch):
    """Let entries be summed by cell after so many; small tests would never reach the real number."""
    if request.param is not None:
        monkeypatch.setattr(clipvp.mappings.statistic, "_MOST_WAITING", request.param)


PLAIN = settings(max_examples=60, deadline=None)
ANY = {"count": st.integers(0, 40), "num_source": st.integers(1, 9), "num_target": st.integers(1, 5)}
CUTS = st.lists(st.integers(0, 40))


def cut(logits, targets, cuts) -> list[tuple[torch.Tensor, torch.Tensor]]:
    edges = sorted({0, len(targets), *(place for place in cuts if place < len(targets))})
    return [(logits[a:b], targets[a:b]) for a, b in itertools.pairwise(edges)]


@PLAIN
@given(cuts=CUTS, most=st.sampled_from([0, 1, 5, 1 << 18]), **ANY)
def test_counts_are_the_product_of_one_hot_tables_whatever_the_batches(
    count, num_source, num_target, cuts, most
):
    logits, targets = logits_and_targets(count, num_source, num_target)
    expected = dense_counts(logits, targets, num_target)
    parts = cut(logits, targets, cuts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clipvp.mappings.statistic, "_MOST_WAITING", most)
        counts = gather(Counts(num_source, num_target), iter(parts))
        assert torch.equal(dense(counts), expected) and dense(counts).dtype == torch.int64
        assert counts.by_class().sum() == count


@PLAIN
@given(cuts=CUTS, processes=st.integers(1, 5), order=st.randoms(use_true_random=False), **ANY)
def test_processes_and_resumes_in_any_order_give_the_same_bits(
    count, num_source, num_target, cuts, processes, order
):
    """Each batch goes to any process; each process may stop, be saved and go on; the sums are added in any order."""
    logits, targets = logits_and_targets(count, num_source, num_target)
    shares = [Counts(num_source, num_target) for _ in range(processes)]
    for part in cut(logits, targets, cuts):
        place = order.randrange(processes)
        shares[place].add(*part)
        if order.random() < 0.3:
            stored = load(save(shares[place].tensors()))
            shares[place] = Counts(num_source, num_target)
            shares[place].add_tensors(stored)
    order.shuffle(shares)
    total = Counts(num_source, num_target)
    for share in shares:
        total.add_tensors(share.tensors())
    alone = gather(Counts(num_source, num_target), [(logits, targets)])
    assert torch.equal(dense(total), dense_counts(logits, targets, num_target))
    for name, value in alone.tensors().items():
        assert torch.equal(total.tensors()[name], value)


def test_the_sum_over_processes_takes_each_once(monkeypatch):
    batches = [logits_and_targets(10, 6, 3, seed) for seed in range(3)]
    shares = [gather(Counts(6, 3), [batch]) for batch in batches]
    monkeypatch.setattr("accelerate.utils.gather_object", lambda own: [share.tensors() for share in shares])
    total = sum_over_processes(shares[0], Counts(6, 3))
    assert torch.equal(dense(total), sum(dense_counts(*batch, 3) for batch in batches))
    assert torch.equal(dense(shares[0]), dense_counts(*batches[0], 3))  # a process keeps its own part


@PLAIN
@given(data=st.data())
def test_every_way_to_read_the_sums_is_that_of_the_dense_table(data):
    num_source, num_target = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 5))
    cell = st.sampled_from([0, 0, 0, 1, 5, 2**40])
    row = st.lists(cell, min_size=num_target, max_size=num_target)
    table = torch.tensor(data.draw(st.lists(row, min_size=num_source, max_size=num_source)))
    sums = Counts.from_matrix(table)
    assert torch.equal(dense(sums), table)
    assert torch.equal(sums.by_class(), table.sum(0)) and torch.equal(sums.by_label(), table.sum(1))
    labels, classes, values = sums.cells
    assert torch.equal(torch.stack([labels, classes], 1), table.nonzero())  # by label, then by class
    assert torch.equal(values, table[labels, classes])
    places = st.lists(st.tuples(st.integers(0, num_source - 1), st.integers(0, num_target - 1)), max_size=9)
    wanted = torch.tensor(data.draw(places), dtype=torch.int64).view(-1, 2).T
    assert torch.equal(sums.at(*wanted), table[wanted[0], wanted[1]])
    assert torch.equal(sums.rows(wanted[0]), table[wanted[0]])


def test_sums_add_up_cell_by_cell(compaction):
    generator = torch.Generator().manual_seed(3)
    sums, table = Counts(11, 4), torch.zeros(44, dtype=torch.int64)
    for _ in range(20):
        cells = torch.randint(44, (7,), generator=generator)
        values = torch.randint(1 << 40, (7,), generator=generator)
        sums.add_cells(cells, values)
        table.index_add_(0, cells, values)
        assert sums.at(cells[:2] // 4, cells[:2] % 4).tolist() == table[cells[:2]].tolist()
    assert torch.equal(dense(sums), table.view(11, 4))


def test_what_tensors_gave_does_not_change_when_more_is_added(compaction):
    counts = gather(Counts(6, 3), [logits_and_targets(10, 6, 3)])
    before = {name: value.clone() for name, value in counts.tensors().items()}
    given_away = counts.tensors()
    counts.add(*logits_and_targets(10, 6, 3, seed=1))
    assert counts.by_class().sum() == 20
    assert all(torch.equal(given_away[name], value) for name, value in before.items())


def test_a_label_with_the_top_score_counts_even_if_no_class_uses_it():
    logits = torch.tensor([[0.0, 1.0, 5.0], [0.0, 9.0, 5.0]])
    counts = gather(Counts(3, 2), [(logits, torch.tensor([1, 1]))])
    assert dense(counts).tolist() == [[0, 0], [0, 1], [0, 1]]


def test_only_one_batch_of_logits_exists_at_a_time():
    alive = []

    def batches():
        for seed in range(20):
            assert sum(ref() is not None for ref in alive) <= 1
            logits, targets = logits_and_targets(8, 50, 3, seed)
            alive.append(weakref.ref(logits))
            yield logits, targets
            del logits

    assert gather(Counts(50, 3), batches()).by_class().sum() == 160


def test_counting_keeps_no_gradient():
    logits, targets = logits_and_targets(5, 4, 3)
    counts = gather(Counts(4, 3), [(logits.requires_grad_(), targets)])
    assert not any(value.requires_grad for value in counts.tensors().values())


@pytest.mark.parametrize("modes", [(True, False), (False, True)])
def test_batches_may_be_added_in_any_mode(modes):
    counts, batches = Counts(6, 3), [logits_and_targets(10, 6, 3, seed) for seed in range(2)]
    for mode, batch in zip(modes, batches, strict=True):
        with torch.inference_mode(mode):
            counts.add(*batch)
    assert torch.equal(dense(counts), sum(dense_counts(*batch, 3) for batch in batches))


@pytest.mark.parametrize("wrong", [-1, 3])
def test_targets_beyond_the_classes_are_refused(wrong):
    with pytest.raises(ValueError, match=rf"targets {min(wrong, 0)}\.\.{max(wrong, 0)} are outside 0\.\.2"):
        Counts(5, 3).add(torch.rand(2, 5), torch.tensor([0, wrong]))


@pytest.mark.parametrize(
    "cells, values",
    [([15], [1]), ([-1], [1]), ([0, 1], [1])],
    ids=["beyond the table", "below zero", "fewer values than cells"],
)
def test_sums_of_another_size_are_refused(cells, values):
    stored = {"cells": torch.tensor(cells), "values": torch.tensor(values)}
    with pytest.raises(ValueError, match="do not fit 5 labels and 3 classes"):
        Counts(5, 3).add_tensors(stored)
