"""Fingerprints and sources of networks whose weights have any shape and type."""

import hashlib
import warnings

import pytest
import torch
from conftest import closed_source
from torch import nn

from clipvp.sources.base import check_forward
from clipvp.sources.fingerprint import weights_fingerprint


class Holder(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.register_buffer("value", value)


def quantised(weight) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about its own quantisation
        return torch.quantize_per_tensor(weight, 0.05, 0, torch.qint8)


BASE = torch.arange(12.0).view(3, 4) / 8
WEIGHTS = {
    "a number": torch.tensor(3.0),
    "half": BASE.half(),
    "bfloat16": BASE.bfloat16(),
    "fp8": BASE.to(torch.float8_e4m3fn),
    "int8": BASE.to(torch.int8),
    "bool": BASE > 0.5,
    "double": BASE.double(),
    "complex": torch.complex(BASE, BASE + 1),
    "conjugate": torch.complex(BASE, BASE + 1).conj(),
    "negative view": torch.complex(BASE, BASE + 1).conj().imag,
    "transposed": BASE.t(),
    "sparse": BASE.to_sparse(),
    "quantised": quantised(BASE),
}


def changed(value: torch.Tensor) -> torch.Tensor:
    """Return the tensor with its last value changed, of the same kind otherwise."""
    if value.is_sparse:
        return changed(value.to_dense()).to_sparse()
    if value.is_quantized:
        return torch._make_per_tensor_quantized_tensor(value.int_repr(), 0.1, 0)  # another scale
    if value.dtype == torch.float8_e4m3fn:
        return changed(value.float()).to(value.dtype)
    value = value.clone()
    last = value.view(-1)[-1:] if value.is_contiguous() else value[-1, -1:]
    last.copy_(last.logical_not() if value.dtype == torch.bool else last + 2)
    return value


@pytest.mark.parametrize("kind", WEIGHTS)
def test_a_fingerprint_is_that_of_the_values_whatever_their_type(kind):
    value = WEIGHTS[kind]
    found = weights_fingerprint(Holder(value))
    assert found == weights_fingerprint(Holder(value)) and len(found) == 16
    assert found != weights_fingerprint(Holder(changed(value)))
    if kind not in ("sparse", "quantised"):
        assert found == weights_fingerprint(Holder(value.resolve_conj().resolve_neg().clone().contiguous()))


def test_an_empty_weight_counts_by_its_shape():
    found = [weights_fingerprint(Holder(torch.zeros(shape))) for shape in ((0,), (0, 3), (3, 0))]
    assert len(set(found)) == 3


def test_the_fingerprint_of_plain_weights_is_the_same_for_good():
    digest = hashlib.sha256(b"value (3, 4) torch.float32;" + BASE.numpy().tobytes())
    assert weights_fingerprint(Holder(BASE)) == digest.hexdigest()[:16]


@pytest.mark.filterwarnings("ignore")  # torch's, about its own quantisation
def test_a_quantised_network_has_a_fingerprint_and_gives_logits():
    def network(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        layers = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
        return torch.ao.quantization.quantize_dynamic(layers, {nn.Linear}, torch.qint8)

    first, again, other = (weights_fingerprint(network(seed)) for seed in (0, 0, 1))
    assert first == again != other
    assert check_forward(closed_source(network(0), 5))(torch.rand(2, 3, 4, 4)).shape == (2, 5)


def layers() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_in_fp32_a_network_of_any_type_computes_in_float32(dtype):
    plain = closed_source(layers().to(dtype).float(), 5)
    source = check_forward(closed_source(layers().to(dtype), 5))
    pixels = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(source(pixels), plain(pixels), rtol=0, atol=0)
    assert source(pixels).dtype == torch.float32


class Tied(nn.Module):
    """The same weight under two names, a scale of no dimension, an empty buffer, and a transposed view."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head = nn.Linear(5, 48), nn.Linear(48, 5)
        self.first.weight = nn.Parameter(self.head.weight.detach().t())
        self.twin = nn.Linear(48, 5)
        self.twin.weight = self.head.weight
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.register_buffer("nothing", torch.zeros(0, 3))
        self.register_buffer("phase", torch.tensor([1j]))

    def forward(self, pixels):
        pixels = pixels.flatten(1)
        return self.head(self.first(self.twin(pixels))) * self.scale * self.phase.abs()


def test_tied_empty_and_complex_weights_make_a_source():
    source = check_forward(closed_source(Tied(), 5))
    pixels = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(source(pixels), Tied()(source.normalize(pixels)))
    assert source.fingerprint == closed_source(Tied(), 5).fingerprint
