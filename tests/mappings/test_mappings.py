"""The mappings do what their names say."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from test_assignment import confused_counts, sums
from test_statistic import dense_counts, logits_and_targets
from torch import nn

from clipvp import build_classifier
from clipvp.config.schema import MappingConfig
from clipvp.data.batches import Batches, epoch_order
from clipvp.labels.space import LabelSpace
from clipvp.mappings.assignment import assign_greedy, assign_optimal
from clipvp.mappings.base import LabelMapping, Links
from clipvp.mappings.dga import DgaMapping
from clipvp.mappings.folded import FoldedMapping
from clipvp.mappings.frequency import FrequencyMapping
from clipvp.mappings.identity import IdentityMapping
from clipvp.mappings.lp_plus_plus import LpPlusPlusMapping
from clipvp.mappings.prototypes import PrototypesMapping
from clipvp.mappings.random import RandomMapping
from clipvp.mappings.statistic import Counts, gather
from clipvp.mappings.text_counts import TextCountsMapping
from clipvp.mappings.text_mixing import TextMixingMapping
from clipvp.mappings.text_pool import TextPoolMapping
from clipvp.mappings.tip_adapter import TipAdapterMapping
from clipvp.mappings.top_k_mean import TopKMeanMapping
from clipvp.progress import Progress
from clipvp.registry import MAPPINGS, UserError
from clipvp.results.tables import mapping_rows
from clipvp.training.step import Trainer


def built(config: MappingConfig, labels: LabelSpace, class_names, seed: int = 0) -> LabelMapping:
    """Return the mapping that a config describes for a closed or text label space."""
    source = SimpleNamespace(labels=labels, num_features=6)
    return MAPPINGS.get(config.kind).from_config(config, source, class_names, seed)


def rows_of(mapping: LabelMapping, labels: LabelSpace, class_names) -> list[dict]:
    return mapping_rows(mapping.links(), labels.names, class_names)


# One label a class


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
            mapping.fit(Counts(9, 3))
        assert mapping.statistic() is None


@pytest.mark.parametrize("assignment", ["greedy", "optimal"])
def test_frequency_fits_the_assignment_of_its_counts(assignment):
    counts = torch.from_numpy(confused_counts(np.random.default_rng(5), 20, 6, 100))
    mapping = FrequencyMapping(20, 6, assignment=assignment)
    mapping.fit(sums(counts))
    expected = {"greedy": assign_greedy, "optimal": assign_optimal}[assignment](sums(counts))
    assert torch.equal(mapping.source_index, expected)
    assert mapping.chosen_count.tolist() == [int(counts[s, t]) for t, s in enumerate(expected)]
    assert torch.equal(mapping.class_count, counts.sum(0))
    with pytest.raises(ValueError, match=r"\(6, 20\), not \(S, T\) = \(20, 6\)"):
        mapping.fit(sums(counts.T))


@pytest.mark.parametrize(
    "mapping, running",
    [
        (FrequencyMapping(7, 3, statistics="running"), True),
        (FrequencyMapping(7, 3), False),
        (FrequencyMapping(7, 3, refresh="never", statistics="running"), False),
        (RandomMapping(7, 3), False),
        (IdentityMapping(7, 3, [1, 2, 3]), False),
    ],
    ids=["running ILM", "exact", "FLM", "RLM", "identity"],
)
def test_only_running_ilm_lets_the_training_steps_gather(mapping, running):
    assert mapping.running is running


def trainer_of(config, task) -> Trainer:
    accelerator = Accelerator()
    classifier = build_classifier(config, task)
    tensors = task.tensors("train", classifier.resize, progress=False)
    return Trainer(classifier, {"train": Batches(tensors, accelerator)}, config, accelerator, Progress(False))


def test_running_counts_are_those_of_the_steps_since_the_last_refresh(config, tiny_task):
    """What a training step sees of an image counts once, with its class, until the next refresh."""
    settings = config(mapping={"statistics": "running", "refresh": 2}, optim={"lr": 20.0})
    trainer = trainer_of(settings, tiny_task)
    mapping, train = trainer.classifier.mapping, trainer.data["train"]
    seen, classes, refreshed = [], [], []
    mapping.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].detach()))
    for epoch in range(5):
        if mapping.due(epoch):
            trainer.refresh_mapping("counting")
            if epoch:
                expected = dense_counts(torch.cat(seen), torch.cat(classes), 3)
                assert torch.equal(mapping.source_index, assign_greedy(sums(expected)))
                assert torch.equal(mapping.class_count, expected.sum(0))
                chosen = expected[mapping.source_index, torch.arange(3)]
                assert torch.equal(mapping.chosen_count, chosen)
                refreshed.append((epoch, int(expected.sum())))
            seen.clear(), classes.clear()
        trainer.train_epoch("training")
        trainer.end_epoch()
        classes.append(train.labels[epoch_order(60, settings.seed, epoch)])
    assert refreshed == [(2, 120), (4, 120)]


def test_without_a_running_mapping_the_steps_gather_nothing(config, tiny_task):
    assert trainer_of(config(), tiny_task).running is None


def test_identity_finds_names_whatever_case_and_spaces():
    labels = LabelSpace(("Tabby cat", "dog", "sea_lion", "dog"))
    names = ["sea  lion", "DOG", "tabby_Cat"]
    mapping = built(MappingConfig(kind="identity"), labels, names)
    assert mapping.source_index.tolist() == [2, 1, 0]
    logits = torch.randn(2, 4)
    assert torch.equal(mapping(logits), logits[:, [2, 1, 0]])


def test_identity_names_the_classes_without_a_label():
    with pytest.raises(UserError, match="2 of 3 have none, the first: 'cow', 'hen'"):
        built(MappingConfig(kind="identity"), LabelSpace(("cat", "dog", "fox")), ["cat", "cow", "hen"])


@pytest.mark.parametrize("kind", ["random", "frequency"])
def test_more_classes_than_labels_name_both(kind):
    with pytest.raises(UserError, match="3 target classes.* has 2"):
        built(MappingConfig(kind=kind), LabelSpace(("cat", "dog")), ["a", "b", "c"])


TEXTS = {"cat": ["a {}.", "It purrs."], "dog": ["a {}."], "hen": ["a {}.", "It lays eggs.", "the {}"]}


def test_identity_of_texts_takes_one_text_a_class_in_any_order():
    labels = LabelSpace(("b", "c", "a"), tuple("abc"), (1, 2, 0), ("{}",), (0, 0, 0))
    mapping = built(MappingConfig(kind="identity"), labels, ["x", "y", "z"])
    assert mapping.source_index.tolist() == [2, 0, 1]
    with pytest.raises(UserError, match="one text a class, and 3 classes have 6 texts; .* such as 'a {}.'"):
        built(MappingConfig(kind="identity"), LabelSpace.from_texts(TEXTS), list(TEXTS))


@pytest.mark.parametrize(
    "labels", [LabelSpace.from_templates(["a {}.", "the {}"], list(TEXTS)), LabelSpace.from_texts(TEXTS)]
)
def test_within_takes_texts_of_the_class_alone(labels):
    mapping = built(MappingConfig(within="class"), labels, list(TEXTS))
    counts = torch.randint(9, (len(labels), 3), generator=torch.Generator().manual_seed(0))
    mapping.fit(sums(counts))
    for target, label in enumerate(mapping.source_index.tolist()):
        own = [s for s, owner in enumerate(labels.class_of) if owner == target]
        assert label == max(own, key=lambda s: counts[s, target])
    again = FrequencyMapping(**json.loads(json.dumps(mapping.settings)))
    again.fit(sums(counts))
    assert torch.equal(again.source_index, mapping.source_index)


def test_within_needs_a_label_space_made_of_text():
    with pytest.raises(UserError, match="mapping.within: class needs a label space made of text"):
        built(MappingConfig(within="class"), LabelSpace(tuple("abc")), ["a", "b"])


# Links, for people


def test_the_mapping_table_is_a_row_a_class():
    labels, names = LabelSpace(("cat", "dog", "fox", "hen")), ["x", "y", "z"]
    mapping = FrequencyMapping(4, 3)
    mapping.fit(sums([[0, 6, 0], [5, 9, 0], [0, 0, 0], [5, 0, 0]]))
    assert [
        (row["class"], row["label"], row["index"], row["count"], row["share"])
        for row in rows_of(mapping, labels, names)
    ] == [("x", "hen", 3, 5, 0.5), ("y", "dog", 1, 9, 0.6), ("z", "cat", 0, 0, None)]
    never = rows_of(RandomMapping(4, 3, seed=0), labels, names)
    assert [row["label"] for row in never] == [labels.names[row["index"]] for row in never]
    assert all(row["count"] is None and row["share"] is None for row in never)
    json.dumps(never, allow_nan=False)


def test_links_of_a_fitted_mapping_hold_counts_and_totals():
    counts = torch.from_numpy(confused_counts(np.random.default_rng(8), 12, 4, 60))
    mapping = FrequencyMapping(12, 4)
    mapping.fit(sums(counts))
    for k in (1, 3):  # there is one link a class, however many are asked for
        links = mapping.links(k)
        assert torch.equal(links.index[:, 0], mapping.source_index) and links.index.shape == (4, 1)
        assert links.weight.tolist() == [[1.0]] * 4
        assert links.count.tolist() == [[int(counts[s, t])] for t, s in enumerate(mapping.source_index)]
        assert torch.equal(links.total, counts.sum(0))


def test_before_a_fit_there_is_no_label_and_no_count():
    mapping = FrequencyMapping(12, 4)
    links = mapping.links()
    assert links.index.tolist() == [[-1]] * 4 and links.weight.tolist() == [[0.0]] * 4
    assert links.count is None and links.total is None
    assert torch.equal(mapping.matrix(), torch.zeros(12, 4))
    rows = rows_of(mapping, LabelSpace(tuple("abcdefghijkl")), list("wxyz"))
    assert all(row["label"] is None and row["count"] is None and row["share"] is None for row in rows)


class Weighted(LabelMapping):
    """Any matrix: the base class knows its links by the matrix alone."""

    kind = "weighted"

    def __init__(self, weights: torch.Tensor):
        super().__init__(*weights.shape)
        self.weights = nn.Parameter(weights)

    def forward(self, outputs):
        return outputs @ self.weights

    def matrix(self):
        return self.weights


class Curved(LabelMapping):
    """Not linear, so no label has a weight."""

    kind = "curved"

    def forward(self, outputs):
        return outputs[:, : self.num_target].square()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 12), st.integers(0, 10**6))
def test_links_are_the_largest_weights_of_the_matrix(num_source, num_target, k, seed):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(num_source, num_target, generator=generator)
    weights[torch.rand(weights.shape, generator=generator) < 0.4] = 0
    links = Weighted(weights).links(k)
    assert links.count is None and links.total is None and not links.weight.requires_grad
    for target in range(num_target):
        order = sorted(range(num_source), key=lambda s: -weights[s, target].item())[:k]
        nonzero = [s for s in order if weights[s, target] != 0]
        expected = nonzero + [-1] * (len(order) - len(nonzero))
        assert links.index[target].tolist() == expected
        assert links.weight[target].tolist() == [weights[s, target].item() for s in order]


def test_several_links_are_listed_in_the_table():
    labels, names = LabelSpace(("cat", "dog", "fox")), ["x", "y"]
    mapping = Weighted(torch.tensor([[0.25, 0.0], [0.75, 0.0], [0.0, 1.0]]))
    rows = mapping_rows(mapping.links(2), labels.names, names)
    assert [(row["label"], row["index"]) for row in rows] == [("dog", 1), ("fox", 2)]
    assert rows[0]["links"] == [{"label": "dog", "weight": 0.75}, {"label": "cat", "weight": 0.25}]
    assert rows[1]["links"] == [{"label": "fox", "weight": 1.0}]


def test_a_mapping_without_a_matrix_has_no_links():
    links = Curved(5, 3).links(4)
    assert isinstance(links, Links)
    assert links.index.tolist() == [[-1]] * 3 and links.weight.tolist() == [[0.0]] * 3


# What holds for every mapping


def fitted(kind: str, seed: int = 5) -> LabelMapping:
    """Return a registered mapping of 8 labels, or 6 features, and 3 classes, fitted where it is to be fitted."""
    own = {
        "semantic": lambda: RandomMapping(8, 3, seed),  # of a text tower: as any mapping of one label a class
        "folded": lambda: FoldedMapping.of(RandomMapping(8, 3, seed), torch.ones(8, 6), torch.ones(8), True),
        "prototypes": lambda: PrototypesMapping(6, 3, "means"),
        "dga": lambda: DgaMapping(8, 3, num_features=8),
        "text_mixing": lambda: TextMixingMapping(8, 3),
        "text_counts": lambda: TextCountsMapping(8, 3),
        "text_pool": lambda: TextPoolMapping(8, 3),
        "tip_adapter": lambda: TipAdapterMapping(6, 3),
        "lp_plus_plus": lambda: LpPlusPlusMapping(6, 3),
        "top_k_mean": lambda: TopKMeanMapping(8, 3, top_k=2),
    }
    config = MappingConfig(kind=kind)
    mapping = own[kind]() if kind in own else built(config, LabelSpace(tuple("abcdefgh")), list("ceg"), seed)
    if mapping.due(0):
        size = mapping.num_source
        mapping.fit(gather(mapping.statistic(), [logits_and_targets(30, size, 3)]))
    return mapping


NOT_OF_LOGITS = {"linear", "logistic", "prototypes", "folded", "tip_adapter", "lp_plus_plus", "dga"}


@pytest.mark.parametrize("kind", MAPPINGS.names())
def test_forward_is_the_product_with_the_matrix(kind):
    mapping = fitted(kind)
    matrix = mapping.matrix()
    assert (matrix is None) == (kind in NOT_OF_LOGITS)
    if matrix is None:
        return
    outputs = torch.randn(9, mapping.num_source, generator=torch.Generator().manual_seed(1))
    assert matrix.dtype == torch.float32 and matrix.shape == (mapping.num_source, 3)
    torch.testing.assert_close(mapping(outputs), outputs @ matrix, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", MAPPINGS.names())
def test_settings_and_state_build_every_mapping_again(kind):
    mapping = fitted(kind)
    again = type(mapping)(**json.loads(json.dumps(mapping.settings)))
    again.load_state_dict(mapping.state_dict())
    views = (mapping.views,) if mapping.views > 1 else ()
    logits = torch.randn(4, *views, mapping.num_source)
    assert torch.equal(again(logits), mapping(logits)) and again.settings == mapping.settings
    labels, names = LabelSpace(tuple("abcdefgh")), list("ceg")
    assert rows_of(again, labels, names) == rows_of(mapping, labels, names)
    trains = [id(parameter) for parameter in mapping.parameters() if parameter.requires_grad]
    groups = [id(parameter) for own in mapping.parameter_groups().values() for parameter in own]
    assert sorted(groups) == sorted(trains)  # each in one group


@pytest.mark.parametrize("kind", ["random", "frequency", "identity"])
def test_one_to_one_mappings_give_each_class_a_label_of_its_own(kind):
    assert len(set(fitted(kind).source_index.tolist())) == 3


@pytest.mark.parametrize("kind", ["random", "frequency"])
@pytest.mark.parametrize("key", ["refresh", "within", "assignment"])
def test_only_keys_of_the_kind_are_taken(kind, key):
    value = {"refresh": "never", "within": "class", "assignment": "optimal"}[key]
    if kind == "frequency":
        assert getattr(MappingConfig(kind=kind, **{key: value}), key) == value
    else:
        with pytest.raises(UserError, match=f"mapping.{key}.* {key} is a key of .*frequency"):
            MappingConfig(kind=kind, **{key: value})
