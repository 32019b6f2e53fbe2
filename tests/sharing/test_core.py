"""The core, which needs no gradient, is left out exactly: for padding, frames and patches, on any network."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sharing import (
    ALWAYS,
    NAMED,
    Branches,
    Call,
    Residual,
    boxes,
    freeze,
    networks,
    scene,
    small_network,
    timm_network,
)
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from clipvp.sharing import Limits, SplitNetwork, count_operations, put_together
from clipvp.sharing.reach import Slide
from clipvp.sharing.split_map import SplitMap


def with_gradients(output, inputs):
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=output.dtype)
    found = torch.autograd.grad((output * direction).sum(), inputs, allow_unused=True, materialize_grads=True)
    return output.detach(), *found


def assert_exact(network, kind, canvas, box, core, batch=2, limits=ALWAYS, tolerance=1e-10, seed=0):
    """Compare with the whole network: output, and the gradients of what is not core."""
    ours = SplitNetwork(network, limits)
    shared, region = scene(canvas, box, batch, seed)
    if kind == "frame":  # the box is the canvas
        shared, box = None, (0, 0, *canvas)
        _, region = scene(canvas, box, batch, seed)
    if kind == "patch":
        shared = scene(canvas, box, batch, seed + 1)[0].detach()
        shared = torch.cat([shared * (image + 1) for image in range(batch)])
        core = None
    inputs = [x for x in (shared, region) if x is not None and x.requires_grad]

    def whole():
        if shared is None:
            return region
        if kind == "patch":
            pixels = shared.clone()
            pixels[:, :, box[0] : box[2], box[1] : box[3]] = region
            return pixels
        return put_together(shared, region, box)

    plain = with_gradients(network(whole()), inputs)
    found = with_gradients(ours(shared, region, box, core), inputs)
    for index, (one, other) in enumerate(zip(plain, found, strict=True)):
        if (
            index == len(inputs) and core is not None
        ):  # the gradient of the region counts outside the core alone
            top, left = box[:2]
            for gradient in (one, other):
                gradient[:, :, core[0] - top : core[2] - top, core[1] - left : core[3] - left] = 0
        assert type(other) is torch.Tensor and one.dtype == other.dtype
        error = (one - other).norm() / (one.norm() + 1e-30)
        assert error <= tolerance or (one - other).norm() < 1e-12, f"{index}: {error:.1e}"
    return ours


class Dense(nn.Module):
    """Layers of which each sees the maps of all before it."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


class Down(nn.Module):
    """A residual block whose branches both halve the map."""

    def __init__(self, channels, wide):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, wide, 1, wide // 2),
        )
        self.short = nn.Sequential(nn.AvgPool2d(2, 2, ceil_mode=True), nn.Conv2d(channels, channels, 1))

    def forward(self, x):
        return F.relu(self.body(x) + self.short(x))


@st.composite
def branched_networks(draw):
    """Return a network of blocks whose branches reach differently far, and a canvas."""
    torch.manual_seed(draw(st.integers(0, 99)))
    canvas = draw(st.tuples(st.integers(12, 26), st.integers(12, 26)))
    layers, channels = [nn.Conv2d(3, 4, 3, draw(st.integers(1, 2)), draw(st.integers(0, 1)))], 4
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(
            st.sampled_from(["basic", "wide", "depthwise", "dense", "branches", "down", "pool", "same"])
        )
        if kind in ("basic", "wide"):
            kernel, dilation = (3, 1) if kind == "basic" else (3, draw(st.integers(1, 4)))
            body = [
                nn.Conv2d(channels, channels, kernel, 1, dilation, dilation),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
                nn.Conv2d(channels, channels, kernel, 1, 1),
            ]
            layers.append(Residual(nn.Sequential(*body), draw(st.booleans())))
        elif kind == "depthwise":
            kernel = draw(st.sampled_from([3, 5, 7]))
            body = [
                nn.Conv2d(channels, 2 * channels, 1),
                nn.SiLU(),
                nn.Conv2d(2 * channels, 2 * channels, kernel, 1, kernel // 2, groups=2 * channels),
                nn.Conv2d(2 * channels, channels, 1),
            ]
            layers.append(Residual(nn.Sequential(*body), draw(st.booleans())))
        elif kind == "dense" and channels <= 8:
            layers.append(Dense(nn.Conv2d(channels, 2, 3, 1, 1), nn.Conv2d(channels + 2, 2, 1)))
            channels += 4
        elif kind == "branches" and channels <= 8:
            branch = (nn.Conv2d(channels, 2, 5, 1, 2), nn.MaxPool2d(3, 1, 1), nn.Conv2d(channels, 2, 1))
            layers.append(Branches(*branch, nn.Identity()))
            channels += 4 + channels
        elif kind == "down":
            layers.append(Down(channels, draw(st.sampled_from([1, 3, 5]))))
        elif kind == "pool":
            layers.append(
                draw(st.sampled_from([nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(3, 1, 1), nn.MaxPool2d(2)]))
            )
        elif kind == "same":
            layers.append(
                Call(lambda x: F.max_pool2d(F.pad(x, (0, 1, 0, 1)), 3, 2) if min(x.shape[2:]) > 3 else x)
            )
        try:
            nn.Sequential(*layers)(torch.zeros(1, 3, *canvas))
        except RuntimeError:  # the map is too small for it
            channels = layers.pop() and nn.Sequential(*layers)(torch.zeros(1, 3, *canvas)).shape[1]
    return freeze(nn.Sequential(*layers)), canvas


LIMITS = [ALWAYS, ALWAYS, Limits(), Limits(0.5, 0.7, 0.5, 0.1, 6), Limits(100.0, 0.3, 100.0, 0.05, 0)]


@settings(deadline=None, max_examples=60)
@given(st.one_of(networks(), branched_networks()), st.data())
def test_any_network_gives_the_same_without_gradient_in_the_core(case, data):
    network, canvas = case
    kind = data.draw(st.sampled_from(["padding", "frame", "patch"]))
    box = data.draw(boxes(*canvas)) if kind != "frame" else (0, 0, *canvas)
    core = data.draw(st.one_of(st.just(box), inside(box)))
    if core == box and kind == "frame":
        core = None
    ours = assert_exact(
        network, kind, canvas, box, core, data.draw(st.integers(1, 3)), data.draw(st.sampled_from(LIMITS))
    )
    assert ours.reason is None


@st.composite
def inside(draw, box):
    top, left, bottom, right = draw(boxes(box[2] - box[0], box[3] - box[1]))
    return top + box[0], left + box[1], bottom + box[0], right + box[1]


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_the_core_shrinks_to_outputs_that_read_nothing_else(data):
    size = data.draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    how = Slide.of(*(data.draw(st.integers(low, 4)) for low in (1, 1, 0, 1)))
    core, side = data.draw(boxes(*size)), how.dilation[0] * (how.kernel[0] - 1) + 1
    if min(size) + 2 * how.before[0] < side:
        return
    around = torch.ones(1, 1, *size)
    around[:, :, core[0] : core[2], core[1] : core[3]] = 0
    weight = torch.ones(1, 1, *how.kernel)
    others = F.conv2d(around, weight, None, how.stride, how.before, how.dilation)[0, 0] > 0
    top, left, bottom, right = how.shrink(core, size, others.shape)
    assert not others[top:bottom, left:right].any()
    if min(how.dilation) == 1 and core == (2, 2, size[0] - 2, size[1] - 2):  # and no fewer
        assert (bottom - top) * (right - left) == (~others).sum()


KINDS = {
    "padding": ((16, 16, 48, 60), (16, 16, 48, 60)),
    "frame": ((0, 0, 64, 80), (9, 9, 55, 71)),
    "patch": ((20, 24, 32, 40), None),
}


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet50", "tf_efficientnet_lite0", "convnext_atto", "densenet121"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_named_networks_without_gradient_in_the_core(name, kind):
    network = freeze(timm_network(name, **NAMED[name]))
    ours = assert_exact(network, kind, (64, 80), *KINDS[kind])
    assert ours.reason is None


def parts_of(network, kind, limits=ALWAYS, dtype=torch.float32, batch=4):
    """Return, for each layer, the share of the map with a gradient, and that of the core."""
    seen = []

    def look(module, inputs, output):
        if isinstance(output, SplitMap):
            whole = output.canvas[0] * output.canvas[1]
            ring = sum(part.shape[2] * part.shape[3] for part in output.parts.ring)
            core = output.parts.core
            assert all(part.requires_grad for part in output.parts.ring)
            assert core is None or not core.requires_grad
            seen.append((ring / whole, 0 if core is None else core.shape[2] * core.shape[3] / whole))

    hooks = [
        module.register_forward_hook(look) for module in network.modules() if not list(module.children())
    ]
    canvas, (box, core) = (64, 80), KINDS[kind]
    shared, region = scene(canvas, box, batch, dtype=dtype)
    if kind == "frame":
        shared = None
    if kind == "patch":
        shared = shared.detach().repeat(batch, 1, 1, 1)
    SplitNetwork(network, limits)(shared, region, box, core)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_the_ring_alone_has_a_gradient(kind):
    network = freeze(timm_network("resnet18"), dtype=torch.float32)
    seen = parts_of(network, kind)
    assert len(seen) > (5 if kind == "patch" else 8)
    assert all(ring < 1 for ring, _ in seen)
    assert (seen[0][1] > 0.1) == (kind != "patch")


def test_a_core_that_is_too_small_is_joined():
    network = freeze(timm_network("resnet18"), dtype=torch.float32)
    cores = [core for _, core in parts_of(network, "frame", Limits(core=0.4, side=0))]
    assert all(core == 0 or core >= 0.4 for core in cores) and cores[0] > 0.4 and len(cores) < 12


def test_without_gradients_no_core_is_kept_apart():
    network, kinds = small_network(), []
    network[0].register_forward_hook(lambda module, inputs, output: kinds.append(type(output)))
    _, region = scene((24, 30), (0, 0, 24, 30))
    with torch.no_grad():
        SplitNetwork(network, ALWAYS)(None, region, (0, 0, 24, 30), (4, 4, 20, 26))
    assert kinds == [torch.Tensor]


def test_channels_last_is_kept_in_all_parts():
    network = small_network(torch.float32).to(memory_format=torch.channels_last)
    layouts = []
    network[2].register_forward_hook(lambda module, inputs, out: layouts.extend(out.parts.tensors))
    shared, region = (x.detach() for x in scene((24, 30), (2, 2, 22, 28), dtype=torch.float32))
    shared, region = (x.contiguous(memory_format=torch.channels_last) for x in (shared, region))
    shared.requires_grad_()
    SplitNetwork(network, ALWAYS)(shared, region, (2, 2, 22, 28), (2, 2, 22, 28))
    assert len(layouts) == 6 and all(x.is_contiguous(memory_format=torch.channels_last) for x in layouts)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["padding", "frame"])
def test_under_autocast_as_exact_as_the_dtype(dtype, kind):
    network = small_network(torch.float32)
    box = (2, 2, 20, 18)
    shared, region = scene((24, 20), box, dtype=torch.float32)
    if kind == "frame":
        shared, box, (_, region) = None, (0, 0, 24, 20), scene((24, 20), (0, 0, 24, 20), dtype=torch.float32)
    leaf = region if shared is None else shared
    whole = region if shared is None else put_together(shared, region, box)
    with torch.autocast("cpu", dtype):
        plain = with_gradients(network(whole), [leaf])
        found = with_gradients(SplitNetwork(network, ALWAYS)(shared, region, box, (4, 4, 18, 16)), [leaf])
    plain[1][:, :, 4:18, 4:16] = found[1][:, :, 4:18, 4:16] = 0
    for one, other in zip(plain, found, strict=True):
        assert one.dtype == other.dtype and (one - other).norm() < 2e-2 * one.norm()


def test_operations_are_counted_forward_and_backward_on_parts():
    network, images = small_network(torch.float32), torch.randn(4, 3, 40, 40)

    def plain():
        pixels = images.clone().requires_grad_()
        network(pixels).sum().backward()

    def in_parts():
        shared = torch.randn(1, 3, 40, 40).requires_grad_()
        box = (3, 3, 37, 37)
        SplitNetwork(network, ALWAYS)(shared, images[:, :, 3:37, 3:37], box, box).sum().backward()

    with FlopCounterMode(display=False) as counter:
        plain()
    assert count_operations(plain) == counter.get_total_flops()
    assert 0.3 < count_operations(in_parts) / count_operations(plain) < 0.9
