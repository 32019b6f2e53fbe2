"""Pooled and counted texts are their formulas, written out plainly."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipvp.config.schema import MappingConfig
from clipvp.mappings.text_counts import TextCounts, TextCountsMapping
from clipvp.mappings.text_pool import TextPoolMapping, group_shares
from clipvp.registry import UserError


@st.composite
def ragged(draw):
    """The class and the group of each text, each class with a text or more in each group, and logits."""
    num_target, num_groups = draw(st.integers(2, 4)), draw(st.integers(1, 3))
    pairs = [(t, g) for t in range(num_target) for g in range(num_groups)]
    texts = [pair for pair in pairs for _ in range(draw(st.integers(1, 4)))]
    texts = draw(st.permutations(texts))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    class_of, group_of = ([text[i] for text in texts] for i in range(2))
    return class_of, group_of, num_target, num_groups, 5 * torch.randn(6, len(texts), generator=generator)


@settings(max_examples=50, deadline=None)
@given(ragged(), st.sampled_from([("mean", 3), ("max", 3), ("top_k_mean", 1), ("top_k_mean", 3)]))
def test_pools_are_their_formulas(problem, pool):
    class_of, group_of, num_target, num_groups, logits = problem
    shares = [(g + 1) / sum(range(1, num_groups + 1)) for g in range(num_groups)]
    mapping = TextPoolMapping(len(class_of), num_target, class_of, group_of, shares, *pool)
    expected = torch.zeros(len(logits), num_target)
    for row, values in enumerate(logits.tolist()):
        for t in range(num_target):
            for g in range(num_groups):
                own = sorted(
                    (v for v, c, k in zip(values, class_of, group_of, strict=True) if (c, k) == (t, g)),
                    reverse=True,
                )
                own = {"mean": own, "max": own[:1], "top_k_mean": own[: pool[1]]}[pool[0]]
                expected[row, t] += shares[g] * sum(own) / len(own)
    torch.testing.assert_close(mapping(logits), expected, atol=1e-4, rtol=1e-4)
    if pool[0] == "mean":
        torch.testing.assert_close(logits @ mapping.matrix(), expected, atol=1e-4, rtol=1e-4)
    links = mapping.links(99)
    for t in range(num_target):
        own = [s for s, c in enumerate(class_of) if c == t] if pool[0] == "mean" else []  # else by image
        assert sorted(i for i in links.index[t].tolist() if i >= 0) == own
        assert float(links.weight[t].sum()) == pytest.approx(1.0 if own else 0.0)


def test_the_gradient_reaches_the_texts_that_were_chosen_alone():
    mapping = TextPoolMapping(8, 2, [0, 0, 0, 0, 1, 1, 1, 1], pool="top_k_mean", top_k=2)
    logits = torch.tensor([[1.0, 4.0, 3.0, 2.0, 0.0, 9.0, 8.0, 7.0]], requires_grad=True)
    mapping(logits)[0, 0].backward()
    assert logits.grad.tolist() == [[0, 0.5, 0.5, 0, 0, 0, 0, 0]]


@settings(max_examples=50, deadline=None)
@given(ragged(), st.integers(1, 3), st.integers(0, 2**31))
def test_counted_texts_are_their_formula(problem, top_k, seed):
    class_of, _, num_target, _, logits = problem
    targets = torch.randint(0, num_target, (len(logits),), generator=torch.Generator().manual_seed(seed))
    mapping = TextCountsMapping(len(class_of), num_target, class_of, top_k)
    size = [class_of.count(t) for t in range(num_target)]
    torch.testing.assert_close(mapping.weight, torch.tensor([1 / size[t] for t in class_of]))
    counts = [0] * len(class_of)
    for values, target in zip(logits.tolist(), targets.tolist(), strict=True):
        own = [s for s, t in enumerate(class_of) if t == target]
        for text in sorted(own, key=lambda s: -values[s])[:top_k]:
            counts[text] += 1
    total = TextCounts(torch.tensor(class_of), top_k)
    for part in torch.arange(len(targets)).flip(0).split(2):
        one = mapping.statistic()
        one.add(logits[part], targets[part])
        total.add_tensors(one.tensors())
    mapping.fit(total)
    sums = [
        sum(count for count, t in zip(counts, class_of, strict=True) if t == c) for c in range(num_target)
    ]
    expected = [
        count / sums[t] if sums[t] else 1 / size[t] for count, t in zip(counts, class_of, strict=True)
    ]
    torch.testing.assert_close(mapping.weight, torch.tensor(expected))
    torch.testing.assert_close(mapping(logits), logits @ mapping.matrix(), atol=1e-4, rtol=1e-4)


def test_shares_of_groups():
    assert group_shares({}, ["a", "b"]) == [0.5, 0.5] and group_shares({"b": 0.7, "a": 0.3}, ["a", "b"]) == [
        0.3,
        0.7,
    ]
    with pytest.raises(UserError, match="there is no group 'c'.* did you mean|there is no group 'c'"):
        group_shares({"c": 1.0}, ["a", "b"])
    with pytest.raises(UserError, match="the group 'b' has no share"):
        group_shares({"a": 1.0}, ["a", "b"])


@pytest.mark.parametrize(
    "values, words",
    [
        ({"group_weights": {"des": 1.5}}, "group_weights.des: 1.5 is not a share"),
        ({"group_weights": {"des": 0.5, "dist": 0.4}}, "sum to 0.9, not to 1"),
        ({"pool": "mode"}, "did you mean"),
        ({"top_k": 0}, "mapping.top_k: 0"),
        ({"texts_per_class": 5}, "needs mapping.texts"),
        ({"phrase_template": "{}: {text}"}, "needs mapping.texts"),
        ({"phrase_template": "{text}", "texts": "a.json"}, "needs one {} for the class"),
        ({"texts": {}}, "mapping.texts: {} is empty"),
        ({"texts": ""}, "mapping.texts: '' is empty"),
    ],
)
def test_wrong_values_are_one_line(values, words):
    with pytest.raises(UserError, match=words):
        MappingConfig(kind="text_pool", **values)
