"""Tip-Adapter and LP++ are their formulas, written out plainly."""

import math

import pytest
import torch
from torch.nn import functional as F

from clipvp.config.schema import MappingConfig
from clipvp.mappings.lp_plus_plus import LpPlusPlusMapping
from clipvp.mappings.tip_adapter import TipAdapterMapping, leave_one_out
from clipvp.registry import UserError


def problem(num_target: int, count: int = 18, size: int = 7, seed: int = 0):
    """Texts (T, D), features (n, D) near the text of their class, and classes, the last of which has no image."""
    generator = torch.Generator().manual_seed(seed)
    texts = F.normalize(torch.randn(num_target, size, generator=generator), dim=1)
    classes = torch.arange(count) % max(1, num_target - 1)
    features = 3 * (texts[classes] + 0.4 * torch.randn(count, size, generator=generator))
    return texts, features, classes


def fitted(mapping, features, classes):
    statistic = mapping.statistic()
    for part in torch.arange(len(classes)).flip(0).split(5):
        statistic.add(features[part], classes[part])
    mapping.fit(statistic)
    return mapping


@pytest.mark.parametrize("num_target", [2, 4])
def test_tip_adapter_is_its_formula(num_target):
    texts, features, classes = problem(num_target)
    mapping = TipAdapterMapping(7, num_target, alpha=1.5, beta=4.0)
    mapping.texts.copy_(100 * texts.T)
    fitted(mapping, features, classes)
    assert mapping.settings["num_images"] == 18
    images = torch.randn(5, 7, generator=torch.Generator().manual_seed(1))
    unit, keys = F.normalize(images, dim=1), F.normalize(features, dim=1)
    for row, logits in zip(unit, mapping(images), strict=True):
        expected = [100 * float(row @ text) for text in texts]
        for key, target in zip(keys, classes.tolist(), strict=True):
            expected[target] += 1.5 * math.exp(-4.0 * (1 - float(row @ key)))
        torch.testing.assert_close(logits, torch.tensor(expected), atol=1e-3, rtol=1e-4)


def test_each_image_is_left_out_of_its_own_vote():
    texts, features, classes = problem(3)
    features = F.normalize(features, dim=1)
    text_logits = 10 * features @ texts.T
    scores = {
        pair[:2]: pair for pair in leave_one_out(features, classes, text_logits, (0.5, 8.0), (1.0, 4.0))
    }
    assert scores.keys() == {(0.5, 1.0), (8.0, 1.0), (0.5, 4.0), (8.0, 4.0)}
    for (alpha, beta), score in scores.items():
        hits, loss = 0, 0.0
        for i in range(len(features)):
            others = [j for j in range(len(features)) if j != i]
            mapping = TipAdapterMapping(7, 3, alpha=alpha, beta=beta)
            mapping.texts.copy_(10 * texts.T)
            logits = fitted(mapping, features[others], classes[others])(features[i][None])
            hits += int(logits.argmax() == classes[i])
            loss += float(F.cross_entropy(logits, classes[i][None]))
        assert score.hits == hits and score.loss == pytest.approx(loss, rel=1e-4)


def test_what_is_chosen_classifies_most_images_that_are_left_out():
    texts, features, classes = problem(4, seed=3)
    mapping = TipAdapterMapping(7, 4)
    mapping.texts.copy_(texts.roll(1, 0).T)  # texts of other classes: the votes must win
    fitted(mapping, features, classes)
    keys = F.normalize(features, dim=1)
    tried = leave_one_out(keys, classes, keys @ mapping.texts, (0.125, 1.0, 64.0), (1.0, 16.0, 128.0))
    [chosen] = leave_one_out(
        keys, classes, keys @ mapping.texts, (float(mapping.alpha),), (float(mapping.beta),)
    )
    assert chosen.hits >= max(score.hits for score in tried) and chosen.alpha > 0.125
    with torch.no_grad():
        assert (mapping(features).argmax(1) == classes).float().mean() > 0.9


def test_the_keys_of_tip_adapter_f_train_by_true_gradients():
    texts, features, classes = problem(3, count=6)
    mapping = TipAdapterMapping(7, 3, alpha=0.7, beta=2.0, train=True)
    mapping.begin(6)
    [keys] = mapping.parameter_groups()["mapping"]
    fitted(mapping, features, classes).double()
    assert mapping.keys is keys  # the optimiser holds it
    outputs = torch.randn(4, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def loss(keys):
        return torch.func.functional_call(mapping, {"keys": keys}, (outputs,))

    assert torch.autograd.gradcheck(loss, keys.detach().requires_grad_())
    assert not TipAdapterMapping(7, 3).parameter_groups()["mapping"]


@pytest.mark.parametrize("num_target", [2, 4])
def test_lp_plus_plus_is_plain_gradient_steps(num_target):
    texts, features, classes = problem(num_target)
    mapping = LpPlusPlusMapping(7, num_target, iterations=25)
    mapping.texts.copy_(texts)
    fitted(mapping, features, classes)
    unit, texts = F.normalize(features.double(), dim=1), texts.double()
    seen = classes.unique()
    means = torch.stack(
        [unit[classes == t].mean(0) if t in seen else torch.zeros(7).double() for t in range(num_target)]
    )
    start = 250 * torch.stack([(unit[classes == t] @ texts[t]).mean() for t in seen]).mean()
    vectors = means.requires_grad_()
    alpha = torch.full((num_target,), float(start), dtype=torch.float64, requires_grad=True)
    largest = float(torch.linalg.eigvalsh(unit.T @ unit).max())
    optimizer = torch.optim.SGD([vectors], lr=4 * len(unit) / largest, momentum=0.9)
    alpha_step = len(unit) / (4 * float((unit @ texts.T).square().sum(0).max()))
    for iteration in range(25):
        optimizer.zero_grad()
        alpha.grad = None
        F.cross_entropy(unit @ (vectors + alpha[:, None] * texts).T, classes).backward()
        optimizer.step()
        if iteration % 10 == 9:
            alpha = (alpha.detach() - alpha_step * alpha.grad).requires_grad_()
    expected = (unit @ (vectors + alpha[:, None] * texts).T).float()
    torch.testing.assert_close(mapping(features), expected, atol=1e-3, rtol=1e-4)
    assert (mapping(features).argmax(1) == classes).all()


@pytest.mark.parametrize("key, value", [("alpha", 0.0), ("alpha", -1.0), ("beta", float("nan"))])
def test_wrong_values_are_one_line(key, value):
    with pytest.raises(UserError, match=f"mapping.{key}: .* is not allowed"):
        MappingConfig(kind="tip_adapter", **{key: value})
    with pytest.raises(UserError, match="mapping.iterations: 0 is not allowed"):
        MappingConfig(kind="lp_plus_plus", iterations=0)
