"""Each operator is exact on a map in two parts, and with a rule its result is in two parts too."""

import warnings

import pytest
import torch
from test_sharing import ALWAYS, Call, assert_exact, freeze, scene, small_network
from torch import nn
from torch.nn import functional as F

from clipvp.sharing import Limits, SplitNetwork, put_together
from clipvp.sharing.split_map import SplitMap

CANVAS, BOX = (24, 30), (7, 9, 11, 14)


def last(x):
    return x.permute(0, 2, 3, 1)


def first(x):
    return x.permute(0, 3, 1, 2)


def like(x, *shape):
    return torch.linspace(-1, 1, torch.Size(shape).numel(), dtype=x.dtype).view(shape)


IN_PARTS = {
    "numbers": lambda x: 1 - (x * 0.5 + 1) / 3,
    "scale": lambda x: x * like(x, 8, 1, 1),
    "position": lambda x: x + like(x, *x.shape[1:]),
    "position last": lambda x: first(last(x) + like(x, *x.shape[2:], 8)),
    "two pairs": lambda x: torch.maximum(x, -x[:, :1]),
    "boxes joined": lambda x: F.max_pool2d(x, 5, 1, 2) + F.avg_pool2d(x, 3, 1, 1),
    "cat": lambda x: torch.cat([F.max_pool2d(x, 3, 1, 1), x], 1),
    "cat last": lambda x: first(torch.cat([last(x), last(x) * 2], -1)),
    "chunk": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "split": lambda x: torch.cat(x.split([3, 5], dim=1)[::-1], 1),
    "slice": lambda x: x[:, 1:7:2],
    "softmax": lambda x: F.softmax(x, 1),
    "mean": lambda x: x - x.mean(1, keepdim=True),
    "var_mean": lambda x: x * torch.var_mean(x, dim=1, keepdim=True)[0],
    "norm": lambda x: first(F.layer_norm(last(x), (8,))),
    "linear": lambda x: first(F.linear(last(x), like(x, 5, 8), like(x, 5))),
    "prelu": lambda x: torch.prelu(x, like(x, 8)),
    "dropout": lambda x: F.dropout(x, training=False) * 2,
    "pad": lambda x: F.pad(x, (1, 2, 0, 1), value=0.3),
    "pad sides": lambda x: F.pad(x, (1, 2)),
    "pad reflect": lambda x: F.pad(x, (1, 1, 2, 2), mode="reflect"),
    "pool stride": lambda x: F.max_pool2d(x, (3, 2), (2, 3), 1, ceil_mode=True),
    "pool override": lambda x: F.avg_pool2d(x, 3, 2, 1, divisor_override=5),
    "in place": lambda x: x.mul_(2).add_(1).relu_(),
    "in place by flag": lambda x: (y := x * 1.1) + F.relu(y, inplace=True) + y,
    "in place on a larger box": lambda x: (x * 1).add_(F.max_pool2d(x, 5, 1, 2)),
    "contiguous": lambda x: x.contiguous().clone().to(torch.float64).relu_(),
}
WHOLE = {
    "gate": lambda x: x * x.mean((2, 3), keepdim=True),
    "image": lambda x: x * like(x, 2, 1, 1, 1),
    "interpolate": lambda x: F.interpolate(x, scale_factor=2.0),
    "turned": lambda x: x.transpose(2, 3).exp(),
    "turned by permute": lambda x: x.permute(0, 3, 2, 1).exp(),
    "rows": lambda x: torch.cat([x, x], 2),
    "chunk of rows": lambda x: x.chunk(2, 2)[0] * 1,
    "slice of rows": lambda x: x[:, :, 1:] * 1,
    "softmax over columns": lambda x: F.softmax(x, -1),
    "mean over channels gone": lambda x: x.mean(1)[:, None],
    "norm over columns": lambda x: F.layer_norm(x, x.shape[-1:]),
    "norm over columns and channels": lambda x: F.layer_norm(last(x), last(x).shape[2:]),
    "linear over columns": lambda x: F.linear(x, like(x, 5, x.shape[-1])),
    "prelu last": lambda x: torch.prelu(last(x), like(x, x.shape[2])),
    "pool last": lambda x: F.max_pool2d(last(x), 3),
    "crop": lambda x: F.pad(x, (-1, 2)),
    "pad near the edge": lambda x: F.pad(x, (10, 0, 0, 0), mode="reflect"),
    "keywords": lambda x: torch.cat(tensors=[x, x * 2], axis=1),
    "out of order": lambda x: x.chunk(dim=1, chunks=2)[0] * 1,
    "indices": lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    "in place, of another dtype": lambda x: x.float().add_(x).double(),
    "put together before and after": lambda x: (
        torch.fft.fft2(y := x * 1.1).real + torch.fft.fft2(y.relu_()).real
    ),
}


@pytest.mark.parametrize("name", [*IN_PARTS, *WHOLE])
def test_each_operator_is_exact_and_has_a_rule_or_not(name):
    seen = []
    network = freeze(
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), Call((IN_PARTS | WHOLE)[name]), nn.Identity())
    )
    network[2].register_forward_hook(lambda module, inputs, output: seen.append(type(output)))
    shared, region = scene(CANVAS, BOX)
    pair = assert_exact(network, shared, region, BOX, tolerance=1e-6 if "dtype" in name else 1e-10)
    assert pair.reason is None and seen[1] is (SplitMap if name in IN_PARTS else torch.Tensor)
    with torch.no_grad():
        plain, held = network(put_together(shared, region, BOX)), pair.hold(shared)
        for _ in range(2):
            torch.testing.assert_close(pair(held, region, BOX), plain)


class Doubled(torch.autograd.Function):
    """An operator with a gradient of its own."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 3


def written_through_a_view(x):
    view = x.permute(0, 2, 3, 1)
    x.relu_()
    return view * 2


def written_through_a_slice(x):
    x[:, :, 2:5] *= 3
    return x + 1


def written_through_a_flat_view(x):
    flat = x.view(x.shape[0], -1)
    flat[:, ::2] += 1
    return x.relu()


def written_through_a_flat_view_of_a_viewed_map(x):
    view = x.permute(0, 2, 3, 1)
    x.view(-1)[::2] += 1
    return view * 2


def written_twice(x):
    alias = x
    x += 1
    x.clamp_(min=0)
    return alias * x


@pytest.mark.parametrize("trick", [written_through_a_slice, written_through_a_flat_view, written_twice])
def test_writes_in_place_reach_the_same_tensors_as_on_the_whole_map(trick):
    network = freeze(nn.Sequential(nn.Conv2d(3, 8, 3), Call(trick), nn.Conv2d(8, 2, 3)))
    assert assert_exact(network, *scene(CANVAS, BOX), BOX).reason is None


@pytest.mark.parametrize(
    "trick", [Doubled.apply, written_through_a_view, written_through_a_flat_view_of_a_viewed_map]
)
def test_a_network_that_is_not_exact_on_two_parts_runs_on_whole_maps(trick):
    network = freeze(nn.Sequential(nn.Conv2d(3, 8, 3), Call(trick)))
    with pytest.warns(UserWarning, match="nothing is shared between images"):
        pair = assert_exact(network, *scene(CANVAS, BOX), BOX)
    assert pair.reason
    with warnings.catch_warnings():  # warns only once
        warnings.simplefilter("error")
        pair(*scene(CANVAS, BOX), BOX)


def test_errors_of_the_network_are_passed_on():
    def fail(x):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        SplitNetwork(Call(fail), ALWAYS)(*scene((9, 9), box := (3, 4, 8, 8)), box)


def test_pairs_look_like_tensors_and_are_never_returned():
    def features(x):
        assert x.shape == (2, 3, 24, 30) and x.ndim == 4 and x.requires_grad and x.dtype == torch.float64
        assert x.is_contiguous() and x.stride() == (2160, 720, 30, 1) and len(x) == 2
        assert torch.fft.fft2(x).real.shape == x.shape
        return {"maps": [x.relu(), x], "sum": x.sum((1, 2, 3))}

    box = (3, 4, 8, 8)
    shared, region = scene((24, 30), box)
    out = SplitNetwork(Call(features), ALWAYS)(shared, region, box)
    whole = put_together(shared, region, box)
    assert [type(value) for value in (*out["maps"], out["sum"])] == [torch.Tensor] * 3
    torch.testing.assert_close(out["maps"], [whole.relu(), whole])
    torch.testing.assert_close(out["sum"], whole.sum((1, 2, 3)))


def test_the_inputs_and_the_network_are_not_changed():
    network = nn.Sequential(nn.ReLU(inplace=True), small_network())
    keys, box = set(network.state_dict()), (3, 4, 8, 8)
    parts = [part.detach() for part in scene((24, 30), box)]
    before = [part.clone() for part in parts]
    pair = SplitNetwork(network, ALWAYS)
    pair(*parts, box)
    pair(pair.hold(parts[0]), parts[1], box)
    assert all(map(torch.equal, parts, before))
    assert not isinstance(pair, nn.Module) and set(network.state_dict()) == keys


def test_a_network_in_training_mode_is_exact_too():
    box = (3, 4, 8, 8)
    parts = [part.detach() for part in scene((24, 30), box)]
    ours, plain = small_network().train(), small_network().train()
    torch.testing.assert_close(SplitNetwork(ours, ALWAYS)(*parts, box), plain(put_together(*parts, box)))
    torch.testing.assert_close(ours[1].running_var, plain[1].running_var)


@pytest.mark.parametrize(("batch", "limit", "in_parts"), [(1, 0.9, False), (2, 0.9, True), (2, 0.5, False)])
def test_the_limit_counts_the_shared_map_as_an_image(batch, limit, in_parts):
    kinds = []
    network = Call(lambda x: kinds.append(type(x)) or x.relu())
    SplitNetwork(network, Limits(box=limit))(*scene((10, 10), box := (0, 0, 3, 3), batch), box)
    assert kinds == [SplitMap if in_parts else torch.Tensor]


def test_an_image_as_large_as_the_canvas_and_one_of_a_pixel():
    for box in [(0, 0, 24, 30), (0, 0, 1, 1), (23, 29, 24, 30)]:
        assert_exact(small_network(), *scene((24, 30), box), box)


def test_channels_last_is_kept_and_exact():
    network = small_network(torch.float32).to(memory_format=torch.channels_last)
    layouts = []
    hook = network[2].register_forward_hook(lambda module, inputs, out: layouts.extend(out.parts.tensors))
    box = (3, 4, 8, 8)
    parts = [part.detach().to(memory_format=torch.channels_last) for part in scene((24, 30), box)]
    parts = [part.float() for part in parts]
    out = SplitNetwork(network, ALWAYS)(*parts, box)
    hook.remove()
    assert all(part.is_contiguous(memory_format=torch.channels_last) for part in (*layouts, out))
    torch.testing.assert_close(out, network(put_together(*parts, box)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_as_exact_as_the_dtype(dtype):
    network, box = small_network(torch.float32), (3, 4, 6, 6)
    with torch.autocast("cpu", dtype):
        assert_exact(network, *scene((12, 10), box, dtype=torch.float32), box, tolerance=2e-2)


@pytest.mark.parametrize(
    ("shared", "region", "box", "message"),
    [
        ((3, 3, 9, 9), (2, 3, 2, 2), (0, 0, 2, 2), r"\(1, C, H, W\)"),
        ((1, 3, 9, 9), (2, 3, 2, 2), (8, 0, 10, 2), "canvas of 9x9"),
        ((1, 3, 9, 9), (2, 3, 2, 2), (0, 0, 3, 2), r"\(B, 3, 3, 2\), got \(2, 3, 2, 2\)"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(shared, region, box, message):
    with pytest.raises(ValueError, match=message):
        SplitNetwork(nn.Identity())(torch.zeros(shared), torch.zeros(region), box)
    with pytest.raises(ValueError, match="float64"):
        SplitNetwork(nn.Identity())(torch.zeros(1, 3, 9, 9), torch.zeros(2, 3, 2, 2).double(), (0, 0, 2, 2))
