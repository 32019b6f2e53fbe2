"""A frozen batch norm as a multiplication and an addition equals the norm up to rounding; others stay."""

import pytest
import torch
from conftest import closed_source
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from clipvp import load_source
from clipvp.sharing import SplitNetwork
from clipvp.sources.frozen_norms import FrozenNorms


class Norms(TorchDispatchMode):
    """Counts the batch norms that torch computes."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.count += "batch_norm" in function.name()
        return function(*arguments, **(options or {}))


@torch.no_grad()
def with_random_state(norm: nn.BatchNorm2d, seed: int = 0) -> nn.BatchNorm2d:
    """Give a norm random statistics and weights, as after training, and freeze it."""
    generator = torch.Generator().manual_seed(seed)
    for name, low, high in (
        ("running_mean", -1, 1),
        ("running_var", 0.1, 3),
        ("weight", -2, 2),
        ("bias", -1, 1),
    ):
        value = getattr(norm, name)
        if value is not None:
            value.uniform_(low, high, generator=generator)
    return norm.eval().requires_grad_(False)


def with_gradient(function, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    values = values.clone().requires_grad_()
    result = function(values)
    result.square().sum().backward()
    return result.detach(), values.grad


@given(st.integers(1, 5), st.integers(1, 6), st.booleans(), st.booleans(), st.integers(0, 99))
def test_it_equals_the_norm(batch, channels, affine, channels_last, seed):
    norm = with_random_state(nn.BatchNorm2d(channels, affine=affine), seed)
    values = torch.randn(batch, channels, 3, 2, generator=torch.Generator().manual_seed(seed))
    if channels_last:
        values = values.to(memory_format=torch.channels_last)
    expected = with_gradient(norm, values)
    with Norms() as norms, FrozenNorms():
        found = with_gradient(norm, values)
    assert norms.count == 0
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["tiny_timm", "tiny_hf"])
def test_a_source_on_a_cpu_computes_no_batch_norm(name, request):
    source = load_source(request.getfixturevalue(name), canvas=32)
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = with_gradient(lambda pixels: source.network(source.normalize(pixels)), pixels)
    with Norms() as norms:
        found = with_gradient(source, pixels)
        shared, region = torch.rand(1, 3, 32, 32), torch.rand(2, 3, 8, 8)
        sharing = source.run(SplitNetwork(source.network), shared, region, (12, 12, 20, 20))
    assert norms.count == 0 and sharing.shape == found[0].shape
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_weights_and_statistics_may_change():
    norm, norms, values = with_random_state(nn.BatchNorm2d(3)), FrozenNorms(), torch.randn(2, 3, 2, 2)
    for seed in range(3):
        with_random_state(norm, seed)
        with norms:
            found = norm(values)
        torch.testing.assert_close(found, norm(values), rtol=1e-5, atol=1e-5)
    norm.eps = 0.5
    with norms:
        torch.testing.assert_close(
            norm(values),
            F.batch_norm(values, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=0.5),
        )


def test_statistics_that_training_updated_are_used():
    norm, norms, values = nn.BatchNorm2d(3, affine=False), FrozenNorms(), torch.randn(9, 3, 2, 2) + 3
    for train in (False, True, False):
        norm.train(train)
        with norms:
            found = norm(values)
        if not train:
            torch.testing.assert_close(found, norm(values), rtol=1e-5, atol=1e-5)


def test_a_norm_made_in_inference_mode_is_left_to_torch():
    with torch.inference_mode():
        norm = with_random_state(nn.BatchNorm2d(3))
    with Norms() as norms, FrozenNorms(), torch.inference_mode():
        norm(torch.randn(2, 3, 2, 2))
    assert norms.count == 1


def test_a_pass_in_inference_mode_does_not_break_training_after_it():
    source = closed_source(
        nn.Sequential(with_random_state(nn.BatchNorm2d(3)), nn.Flatten(), nn.Linear(48, 5)), 5
    )
    with torch.inference_mode():
        source(torch.rand(2, 3, 4, 4))
    _, gradient = with_gradient(source, torch.rand(2, 3, 4, 4))
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("how", ["weights train", "statistics update"])
def test_a_norm_that_is_not_frozen_is_left_to_torch(how):
    norm = nn.BatchNorm2d(3)
    norm.train(how == "statistics update").requires_grad_(how == "weights train")
    with Norms() as norms, FrozenNorms():
        result = norm(torch.randn(4, 3, 2, 2))
    assert norms.count == 1
    if how == "weights train":
        result.sum().backward()
        assert norm.weight.grad is not None
    else:
        assert norm.num_batches_tracked == 1
