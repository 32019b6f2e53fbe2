"""The mappings do what their names say."""

import json

import numpy as np
import pytest
import torch
from test_assignment import confused_counts, logits_and_targets

from clipvp.config.schema import MappingConfig
from clipvp.labels.space import LabelSpace
from clipvp.mappings.assignment import assign_greedy, assign_optimal, count_matrix
from clipvp.mappings.base import FrequencyMapping, IdentityMapping, RandomMapping, build_mapping
from clipvp.registry import MAPPINGS, UserError


def test_forward_picks_the_columns_and_passes_the_gradient():
    mapping = RandomMapping(9, 4, seed=3)
    logits = torch.randn(5, 9, requires_grad=True)
    target_logits = mapping(logits)
    for column, source in enumerate(mapping.source_index.tolist()):
        assert torch.equal(target_logits[:, column], logits[:, source])
    target_logits.sum().backward()
    picked = torch.zeros(9)
    picked[mapping.source_index] = 1
    assert torch.equal(logits.grad, picked.expand(5, 9))


def test_random_is_a_function_of_its_seed_alone_and_injective():
    state = torch.get_rng_state()
    first = [RandomMapping(100, 10, seed=seed).source_index.tolist() for seed in range(20)]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert first == [RandomMapping(100, 10, seed=seed).source_index.tolist() for seed in range(20)]
    assert all(len(set(index)) == 10 and 0 <= min(index) <= max(index) < 100 for index in first)
    assert len({tuple(index) for index in first}) == 20
    assert sorted(RandomMapping(10, 10, seed=0).source_index.tolist()) == list(range(10))


def test_random_maps_every_label_equally_often():
    hits = np.zeros(8)
    for seed in range(800):
        hits[RandomMapping(8, 2, seed=seed).source_index.numpy()] += 1
    assert abs(hits - 200).max() < 60  # nearly five standard deviations


@pytest.mark.parametrize(
    "refresh, epochs",
    [("never", [0]), (1, [0, 1, 2, 3, 4, 5, 6]), (2, [0, 2, 4, 6]), (3, [0, 3, 6]), (100, [0])],
)
def test_refresh_says_which_epochs_count(refresh, epochs):
    mapping = FrequencyMapping(9, 3, refresh=refresh)
    assert [epoch for epoch in range(7) if mapping.due(epoch)] == epochs


def test_random_and_identity_never_count():
    for mapping in (RandomMapping(9, 3), IdentityMapping(9, 3, [4, 5, 6])):
        assert not any(mapping.due(epoch) for epoch in range(5))
        with pytest.raises(TypeError, match=mapping.kind):
            mapping.fit(torch.zeros(9, 3, dtype=torch.int64))


@pytest.mark.parametrize("assignment", ["greedy", "optimal"])
def test_frequency_fits_the_assignment_of_its_counts(assignment):
    counts = torch.from_numpy(confused_counts(np.random.default_rng(5), 20, 6, 100))
    mapping = FrequencyMapping(20, 6, assignment=assignment)
    mapping.fit(counts)
    expected = {"greedy": assign_greedy, "optimal": assign_optimal}[assignment](counts)
    assert torch.equal(mapping.source_index, expected)
    assert mapping.chosen_count.tolist() == [int(counts[s, t]) for t, s in enumerate(expected)]
    assert torch.equal(mapping.class_count, counts.sum(0))
    with pytest.raises(ValueError, match=r"\(6, 20\), not \(S, T\) = \(20, 6\)"):
        mapping.fit(counts.T)


def test_running_counts_are_those_of_the_steps_since_the_last_refresh():
    mapping = FrequencyMapping(7, 3, statistics="running")
    early, first, second, third = (logits_and_targets(10, 7, 3, seed) for seed in range(4))
    mapping.observe(*early)
    assert mapping.running_counts() is None  # no mapping yet: the first counts need a pass
    mapping.fit(count_matrix([early], 7, 3))
    mapping.observe(*first)
    mapping.observe(*second)
    assert torch.equal(mapping.running_counts(), count_matrix([first, second], 7, 3))
    mapping.fit(mapping.running_counts())
    mapping.observe(*third)
    assert torch.equal(mapping.running_counts(), count_matrix([third], 7, 3))


@pytest.mark.parametrize(
    "mapping",
    [
        FrequencyMapping(7, 3),
        FrequencyMapping(7, 3, refresh="never", statistics="running"),
        RandomMapping(7, 3),
        IdentityMapping(7, 3, [1, 2, 3]),
    ],
    ids=["exact", "FLM", "RLM", "identity"],
)
def test_others_gather_nothing_while_training(mapping):
    mapping.observe(*logits_and_targets(10, 7, 3))
    assert mapping.running_counts() is None


def test_identity_finds_names_whatever_case_and_spaces():
    labels = LabelSpace(("Tabby cat", "dog", "sea_lion", "dog"))
    names = ["sea  lion", "DOG", "tabby_Cat"]
    mapping = build_mapping(MappingConfig("identity"), labels, names, seed=0)
    assert mapping.source_index.tolist() == [2, 1, 0]
    logits = torch.randn(2, 4)
    assert torch.equal(mapping(logits), logits[:, [2, 1, 0]])


def test_identity_names_the_classes_without_a_label():
    with pytest.raises(UserError, match="2 of 3 have none, the first: 'cow', 'hen'"):
        build_mapping(MappingConfig("identity"), LabelSpace(("cat", "dog", "fox")), ["cat", "cow", "hen"], 0)


@pytest.mark.parametrize("kind", ["random", "frequency"])
def test_more_classes_than_labels_name_both(kind):
    with pytest.raises(UserError, match="3 target classes.* has 2"):
        build_mapping(MappingConfig(kind), LabelSpace(("cat", "dog")), ["a", "b", "c"], 0)


def test_describe_is_a_row_a_class():
    labels, names = LabelSpace(("cat", "dog", "fox", "hen")), ["x", "y", "z"]
    mapping = FrequencyMapping(4, 3)
    mapping.fit(torch.tensor([[0, 6, 0], [5, 9, 0], [0, 0, 0], [5, 0, 0]]))
    assert [
        (row["class"], row["label"], row["index"], row["count"], row["share"])
        for row in mapping.describe(labels, names)
    ] == [("x", "hen", 3, 5, 0.5), ("y", "dog", 1, 9, 0.6), ("z", "cat", 0, 0, None)]
    never = RandomMapping(4, 3, seed=0).describe(labels, names)
    assert [row["label"] for row in never] == [labels.names[row["index"]] for row in never]
    assert all(row["count"] is None and row["share"] is None for row in never)
    json.dumps(never, allow_nan=False)


@pytest.mark.parametrize("kind", MAPPINGS.names())
def test_settings_and_state_build_every_mapping_again(kind):
    labels, names = LabelSpace(tuple("abcdefgh")), list("ceg")
    mapping = build_mapping(MappingConfig(kind, statistics="running"), labels, names, seed=5)
    if mapping.due(0):
        mapping.fit(count_matrix([logits_and_targets(30, 8, 3)], 8, 3))
    again = MAPPINGS.get(kind)(**json.loads(json.dumps(mapping.settings)))
    again.load_state_dict(mapping.state_dict())
    logits = torch.randn(4, 8)
    assert torch.equal(again(logits), mapping(logits)) and again.settings == mapping.settings
    assert again.describe(labels, names) == mapping.describe(labels, names)
    assert len(set(mapping.source_index.tolist())) == 3
