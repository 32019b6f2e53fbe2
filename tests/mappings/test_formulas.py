"""Each mapping is its formula, written out plainly: loops over labels, classes and images."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from clipvp.mappings.bayesian import BayesianMapping, SoftBayesianMapping
from clipvp.mappings.feature_statistics import FeatureRows, FeatureSums
from clipvp.mappings.linear import LinearMapping
from clipvp.mappings.logistic import LogisticMapping, choose_strength, solve
from clipvp.mappings.prototypes import PrototypesMapping
from clipvp.mappings.semantic import assign_in_turn
from clipvp.mappings.statistic import Counts, SoftCounts
from clipvp.mappings.text_mixing import TextMixingMapping
from clipvp.mappings.top_k_mean import TopKMeanMapping
from clipvp.registry import UserError


@st.composite
def problems(draw):
    """S labels, T classes, n images: logits and targets; some classes may have no images."""
    num_source, num_target = draw(st.integers(2, 12)), draw(st.integers(2, 6))
    count, seed = draw(st.integers(1, 40)), draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(count, num_source, generator=generator)
    return logits, torch.randint(0, num_target, (count,), generator=generator), num_target


def blm_by_loops(table: list[list[float]], smoothing: float) -> list[list[float]]:
    shares = [[value / (sum(row) + smoothing) if sum(row) else 0.0 for value in row] for row in table]
    sums = [sum(row[t] for row in shares) for t in range(len(table[0]))]
    return [[share / sums[t] if sums[t] else 0.0 for t, share in enumerate(row)] for row in shares]


@settings(max_examples=60, deadline=None)
@given(problems(), st.sampled_from([0.0, 1.0, 2.5]))
def test_blm_is_its_formula(problem, smoothing):
    logits, targets, num_target = problem
    table = [[0.0] * num_target for _ in range(logits.shape[1])]
    for image, target in zip(logits.tolist(), targets.tolist(), strict=True):
        table[image.index(max(image))][target] += 1
    mapping = BayesianMapping(logits.shape[1], num_target, smoothing=smoothing)
    statistic = mapping.statistic()
    statistic.add(logits, targets)
    mapping.fit(statistic)
    expected = torch.tensor(blm_by_loops(table, smoothing))
    torch.testing.assert_close(mapping.matrix(), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(mapping(logits), logits @ expected, atol=1e-4, rtol=1e-5)
    sums = mapping.weight.sum(0)
    assert all(abs(float(total) - (t in targets)) < 1e-5 for t, total in enumerate(sums))


@settings(max_examples=60, deadline=None)
@given(problems(), st.sampled_from([None, 1, 2]))
def test_blm_plus_is_its_formula(problem, top_k):
    logits, targets, num_target = problem
    mapping = SoftBayesianMapping(logits.shape[1], num_target, top_k=top_k)
    k = min(top_k or max(1, int(0.15 * num_target)), logits.shape[1])
    table = [[0.0] * num_target for _ in range(logits.shape[1])]
    for image, target in zip(logits.double().softmax(1).tolist(), targets.tolist(), strict=True):
        for label in sorted(range(len(image)), key=lambda s: -image[s])[:k]:
            table[label][target] += image[label]
    statistic = mapping.statistic()
    for part in torch.arange(len(targets)).split(7):
        statistic.add(logits[part], targets[part])
    mapping.fit(statistic)
    torch.testing.assert_close(mapping.matrix(), torch.tensor(blm_by_loops(table, 1.0)), atol=1e-5, rtol=1e-4)


def test_soft_counts_are_the_same_bits_in_any_order():
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(64, 9, generator=generator), torch.randint(0, 4, (64,), generator=generator)
    sums = []
    for order in (torch.arange(64), torch.randperm(64, generator=generator)):
        parts = [SoftCounts(9, 4, 3) for _ in range(3)]
        for place, row in enumerate(order):
            parts[place % 3].add(logits[row][None], targets[row][None])
        total = SoftCounts(9, 4, 3)
        for part in parts[::-1]:
            total.add_tensors(part.tensors())
        sums.append(total.tensors())
    assert all(torch.equal(sums[0][name], sums[1][name]) for name in sums[0])


@settings(max_examples=60, deadline=None)
@given(problems(), st.integers(1, 3))
def test_k_labels_are_chosen_by_the_largest_count_of_all_that_are_left(problem, k):
    logits, targets, num_target = problem
    num_source = logits.shape[1]
    if k * num_target > num_source:
        with pytest.raises(UserError, match=f"mapping.top_k: .* at most {num_source // num_target}"):
            TopKMeanMapping(num_source, num_target, top_k=k)
        return
    mapping = TopKMeanMapping(num_source, num_target, top_k=k)
    statistic = mapping.statistic()
    statistic.add(logits, targets)
    mapping.fit(statistic)
    table = statistic.rows(torch.arange(num_source)).clone()
    given_to: list[list[int]] = [[] for _ in range(num_target)]
    for _ in range(
        k * num_target
    ):  # AutoVP's loop: the first largest cell of the table; what is used becomes -1
        cell = int(table.argmax())
        label, target = divmod(cell, num_target)
        given_to[target].append(label)
        table[label] = -1
        if len(given_to[target]) == k:
            table[:, target] = -1
    assert mapping.source_index.tolist() == given_to
    expected = torch.stack([logits[:, row].mean(1) for row in given_to], 1)
    torch.testing.assert_close(mapping(logits), expected)
    torch.testing.assert_close(logits @ mapping.matrix(), expected)
    links = mapping.links(9)
    assert links.index.tolist() == given_to and links.total.tolist() == statistic.by_class().tolist()


def test_names_take_labels_in_turn():
    similarity = torch.tensor([[0.9, 0.95, 0.1], [0.2, 0.7, 0.1], [0.3, 0.1, 0.1]])
    assert assign_in_turn(similarity).tolist() == [0, 1, 2]


@settings(max_examples=40, deadline=None)
@given(problems())
def test_feature_sums_are_the_moments(problem):
    features, targets, num_target = problem
    statistic = FeatureSums(features.shape[1], num_target)
    for part in torch.arange(len(targets)).split(5):
        statistic.add(features[part], targets[part])
    mean, deviation = statistic.moments()
    torch.testing.assert_close(mean, features.double().mean(0), atol=1e-6, rtol=1e-6)
    expected = features.double().std(0, correction=0)
    constant = expected < 2e-3 * (1 + mean.abs())
    assert ((deviation == 1) | ~constant | (deviation < 2e-2)).all()
    torch.testing.assert_close(deviation[~constant], expected[~constant], atol=1e-4, rtol=1e-4)
    for target, row in enumerate(statistic.class_means()):
        own = features[targets == target].double()
        torch.testing.assert_close(row, own.mean(0) if len(own) else mean, atol=1e-6, rtol=1e-6)


def test_rows_are_the_same_in_any_order():
    generator = torch.Generator().manual_seed(0)
    features, targets = (
        torch.randn(30, 5, generator=generator),
        torch.randint(0, 3, (30,), generator=generator),
    )
    features[7] = features[3]
    one, other, again = FeatureRows(5), FeatureRows(5), FeatureRows(5)
    one.add(features, targets)
    for row in torch.randperm(30, generator=generator):
        other.add(features[row][None], targets[row][None])
    again.add_tensors(other.tensors())
    for pair in zip(one.rows(), again.rows(), strict=True):
        assert torch.equal(*pair)
    assert one.rows()[1].tolist() == sorted(targets.tolist())


@pytest.mark.parametrize("standardise", [False, True])
def test_the_start_at_the_means_chooses_the_nearest_mean(standardise):
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(50, 6, generator=generator) * torch.arange(1, 7) + 2
    targets = torch.randint(0, 3, (50,), generator=generator)
    mapping = LinearMapping(6, 3, start="means", standardise=standardise)
    statistic = mapping.statistic()
    statistic.add(features, targets)
    mapping.fit(statistic)
    scaled = (features - features.mean(0)) / features.std(0, correction=0) if standardise else features
    means = torch.stack([scaled[targets == t].mean(0) for t in range(3)])
    distances = torch.tensor([[float(((x - m) ** 2).sum()) for m in means] for x in scaled])
    logits = mapping(features)
    assert logits.argmax(1).tolist() == distances.argmin(1).tolist()
    torch.testing.assert_close(
        logits - logits[:, :1], (distances[:, :1] - distances) / 2, atol=1e-3, rtol=1e-3
    )


@pytest.mark.parametrize("takes", ["features", "logits"])
def test_a_linear_layer_trains_from_its_start(takes):
    mapping = LinearMapping(5, 3, takes=takes)
    outputs = torch.randn(4, 5)
    assert torch.equal(mapping(outputs), torch.zeros(4, 3)) and not mapping.due(0)
    with torch.no_grad():
        mapping.weight.normal_()
        mapping.bias.normal_()
    torch.testing.assert_close(mapping(outputs), F.linear(outputs, mapping.weight.T, mapping.bias))
    assert [len(own) for own in mapping.parameter_groups().values()] == [2]
    assert (mapping.links(2).index[:, 0] >= 0).all() == (takes == "logits")
    fixed = LinearMapping(5, 3, takes=takes, train=False, bias=False)
    assert not any(parameter.requires_grad for parameter in fixed.parameters())


@settings(max_examples=40, deadline=None)
@given(problems(), st.sampled_from([0.5, 1.0]))
def test_prototypes_are_cosines(problem, alpha):
    features, targets, num_target = problem
    mapping = PrototypesMapping(features.shape[1], num_target, "means", alpha, 10.0)
    statistic = mapping.statistic()
    statistic.add(features, targets)
    mapping.fit(statistic)
    with torch.no_grad():
        mapping.residual.normal_(generator=torch.Generator().manual_seed(0))
    logits = mapping(features).detach()
    for i, image in enumerate(features):
        for t in range(num_target):
            vector = (mapping.prototypes[t] + alpha * mapping.residual[t]).detach()
            cosine = float(image @ vector) / (
                math.sqrt(float(image @ image)) * math.sqrt(float(vector @ vector))
            )
            assert float(logits[i, t]) == pytest.approx(10 * cosine, abs=1e-3)


@pytest.mark.parametrize("class_of", [None, [1, 0, 0, 1, 1, 0, 0]])
def test_texts_are_mixed_by_their_formula(class_of):
    count = 6 if class_of is None else 7
    mapping = TextMixingMapping(count, 2, class_of)
    generator = torch.Generator().manual_seed(0)
    outputs = 50 * torch.randn(5, count, generator=generator)
    owner = class_of or [s % 2 for s in range(count)]
    own = {t: [s for s in range(count) if owner[s] == t] for t in range(2)}
    expected = torch.stack([outputs[:, own[t]].mean(1) for t in range(2)], 1)  # at the start
    torch.testing.assert_close(mapping(outputs), expected)
    with torch.no_grad():
        mapping.text_logits.copy_(30 * torch.randn(count, generator=generator))
        mapping.mixing.normal_(generator=generator)
    weights = {t: F.softmax(mapping.text_logits.detach()[own[t]], 0) for t in range(2)}
    f = torch.stack([(outputs[:, own[t]] * weights[t]).sum(1) for t in range(2)], 1)
    expected = f @ (torch.eye(2) + mapping.mixing.detach())
    torch.testing.assert_close(mapping(outputs), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(outputs @ mapping.matrix(), expected, atol=1e-4, rtol=1e-4)


TRAINED = {
    "linear": lambda: LinearMapping(6, 3, start="zeros"),
    "linear on logits": lambda: LinearMapping(6, 3, takes="logits"),
    "prototypes": lambda: PrototypesMapping(6, 3, "means", 0.5, 5.0),
    "texts": lambda: TextMixingMapping(6, 3),
}


@pytest.mark.parametrize("kind", TRAINED)
def test_gradients_are_those_of_differences(kind):
    mapping = TRAINED[kind]().double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in (*mapping.parameters(), *mapping.buffers()):
            if value.is_floating_point():
                value.normal_(generator=generator)
    outputs = torch.randn(4, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    parameters = list(mapping.parameters())

    def loss(outputs, *values):
        given = dict(zip(dict(mapping.named_parameters()), values, strict=True))
        return torch.func.functional_call(mapping, given, (outputs,))

    assert torch.autograd.gradcheck(loss, (outputs, *parameters))


# The linear probe


@pytest.fixture(scope="module")
def clouds():
    generator = torch.Generator().manual_seed(5)
    centres = torch.randn(4, 40, generator=generator)
    targets = torch.arange(64) % 4
    features = centres[targets] + 2 * torch.randn(64, 40, generator=generator)
    tests = centres[targets] + 2 * torch.randn(64, 40, generator=generator)
    return features * torch.linspace(0.1, 9, 40) + 3, tests * torch.linspace(0.1, 9, 40) + 3, targets


@pytest.mark.parametrize("strength", [0.001, 0.1, 3.0])
def test_the_linear_probe_is_scikit_learns_logistic_regression(strength, clouds):
    linear_model = pytest.importorskip("sklearn.linear_model")
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    features, tests, targets = clouds
    scaler = preprocessing.StandardScaler().fit(features.double().numpy())
    other = linear_model.LogisticRegression(C=strength, max_iter=5000, tol=1e-10)
    other.fit(scaler.transform(features.double().numpy()), targets.numpy())
    expected = other.predict_proba(scaler.transform(tests.double().numpy()))
    mapping = LogisticMapping(40, 4, [strength])
    statistic = mapping.statistic()
    statistic.add(features, targets)
    mapping.fit(statistic)
    torch.testing.assert_close(
        mapping(tests).softmax(1).double(), torch.from_numpy(expected), atol=1e-3, rtol=1e-2
    )
    assert float(mapping.strength) == pytest.approx(strength)


@pytest.mark.parametrize("standardise", [False, True])
def test_a_linear_head_may_start_at_the_linear_probe(standardise, clouds):
    features, tests, targets = clouds
    probe, head = LogisticMapping(40, 4), LinearMapping(40, 4, start="probe", standardise=standardise)
    for mapping in (probe, head):
        statistic = mapping.statistic()
        statistic.add(features, targets)
        mapping.fit(statistic)
    torch.testing.assert_close(head(tests), probe(tests), atol=1e-4, rtol=1e-4)


def test_fewer_images_than_features_are_solved_in_what_they_span(clouds):
    features, tests, targets = clouds
    few, classes = features[:20], targets[:20]
    mapping = LogisticMapping(40, 4, [0.1])
    statistic = mapping.statistic()
    statistic.add(few, classes)
    mapping.fit(statistic)
    scaled = ((few - few.mean(0)) / few.std(0, correction=0)).double()
    weight, bias = solve(scaled, classes, 4, 0.1)
    expected = ((tests - few.mean(0)) / few.std(0, correction=0)).double() @ weight + bias
    torch.testing.assert_close(mapping(tests).double(), expected, atol=1e-3, rtol=1e-3)


def test_the_strength_is_the_one_with_the_smallest_loss_on_images_left_out(clouds):
    features, _, targets = clouds
    inputs = ((features - features.mean(0)) / features.std(0)).double()
    order = targets.argsort(stable=True)
    inputs, targets = inputs[order], targets[order]
    strengths, losses = [1e-3, 1e-2, 0.1, 1.0], []
    for strength in strengths:
        total = 0.0
        for left_out in range(4):
            held = torch.arange(64) % 4 == left_out
            weight, bias = solve(inputs[~held], targets[~held], 4, strength)
            total += float(F.cross_entropy(inputs[held] @ weight + bias, targets[held], reduction="sum"))
        losses.append(total)
    assert choose_strength(inputs, targets, 4, strengths, 4) == strengths[losses.index(min(losses))]


def test_the_sums_of_a_whole_table():
    """Counts that are given as a table, as those of ILM's tests."""
    mapping = BayesianMapping(3, 2)
    mapping.fit(Counts.from_matrix(torch.tensor([[4, 0], [0, 3], [0, 0]])))
    assert mapping.matrix().tolist() == [[1, 0], [0, 1], [0, 0]]


def test_a_folded_mapping_is_made_by_fold_alone():
    from clipvp.config.schema import MappingConfig
    from clipvp.mappings.folded import FoldedMapping

    with pytest.raises(UserError, match="mapping.kind: a folded mapping is not built from a config"):
        FoldedMapping.from_config(MappingConfig(kind="folded"), None, ["a", "b"], 0)
