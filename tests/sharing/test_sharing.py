"""A pair network equals ``network(put_together(shared, region, box))``, gradients included, with less work."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from clipvp.sharing import Limits, SplitNetwork, put_together
from clipvp.sharing.reach import Slide
from clipvp.sharing.split_map import SplitMap
from clipvp.sharing.window import Layout, Parts, read_windows

# Limits that keep maps in parts until the box is the whole map and the core is gone.
ALWAYS = Limits(100.0, 100.0, 100.0, 0.0, 0)
few = settings(deadline=None, max_examples=60)


def freeze(network: nn.Module, seed: int = 0, dtype=torch.float64) -> nn.Module:
    """Give every batch norm random statistics, then freeze the network."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.8, 1.2, generator=generator)
    return network.eval().requires_grad_(False).to(dtype)


def scene(canvas, box, batch=2, seed=0, dtype=torch.float64, channels=3):
    """Return a shared map and a region in a box, both requiring gradients."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(1, channels, *canvas, generator=generator, dtype=dtype)
    region = torch.randn(batch, channels, box[2] - box[0], box[3] - box[1], generator=generator, dtype=dtype)
    return shared.requires_grad_(), region.requires_grad_()


def with_gradients(function, *inputs):
    """Return a function's output and the gradients of its product with a random tensor."""
    output = function(*inputs)
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=output.dtype)
    return (output.detach(), *torch.autograd.grad((output * direction).sum(), inputs, materialize_grads=True))


def assert_exact(network, shared, region, box, limit=ALWAYS, tolerance=1e-10) -> SplitNetwork:
    pair = SplitNetwork(network, limit)
    plain = with_gradients(lambda *parts: network(put_together(*parts, box)), shared, region)
    ours = with_gradients(lambda *parts: pair(*parts, box), shared, region)
    for what, one, other in zip(
        ("output", "gradient of shared", "gradient of region"), plain, ours, strict=True
    ):
        assert type(other) is torch.Tensor and one.dtype == other.dtype
        error = (one - other).norm() / (one.norm() + 1e-30)
        assert error <= tolerance or one.norm() == other.norm() == 0, f"{what}: {error:.1e}"
    return pair


def small_network(dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    return freeze(
        nn.Sequential(*layers, Residual(nn.Conv2d(8, 8, 3, padding=1), True), nn.ReLU()), dtype=dtype
    )


@st.composite
def boxes(draw, height, width):
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    return top, left, draw(st.integers(top + 1, height)), draw(st.integers(left + 1, width))


# ------------------------------------------------------------------ the geometry


@st.composite
def windows(draw):
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    top, left = draw(st.integers(-3, height - 1)), draw(st.integers(-3, width - 1))
    bottom, right = (
        draw(st.integers(max(top, 0) + 1, height + 3)),
        draw(st.integers(max(left, 0) + 1, width + 3)),
    )
    return (height, width), draw(boxes(height, width)), (top, left, bottom, right)


@few
@given(windows(), st.booleans())
def test_a_window_equals_the_slice_of_the_padded_whole_map(case, channels_last):
    (height, width), box, window = case
    shared, region = scene((height, width), box)
    if channels_last:
        shared, region = (t.detach().contiguous(memory_format=torch.channels_last) for t in (shared, region))
        shared.requires_grad_(), region.requires_grad_()

    def plain(shared, region):
        whole = shared.expand(len(region), -1, -1, -1).clone()
        whole[:, :, box[0] : box[2], box[1] : box[3]] = region
        padded = F.pad(whole, (3, 3, 3, 3), value=7.0)
        return padded[:, :, window[0] + 3 : window[2] + 3, window[1] + 3 : window[3] + 3]

    def ours(shared, region):
        parts = Parts(Layout((height, width), box), shared, (region,), None)
        return read_windows(parts, [window], len(region), fill=7.0)[0]

    for one, other in zip(
        with_gradients(plain, shared, region), with_gradients(ours, shared, region), strict=True
    ):
        torch.testing.assert_close(one, other)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_the_box_grows_to_exactly_the_outputs_that_depend_on_it(data):
    size = data.draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    kernel, dilation = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 3))
    stride, padding = data.draw(st.integers(1, 5)), data.draw(st.integers(0, 4))
    box = data.draw(boxes(*size))
    inside = torch.zeros(1, 1, *size)
    inside[:, :, box[0] : box[2], box[1] : box[3]] = 1
    if any(side + 2 * padding < dilation * (kernel - 1) + 1 for side in size):
        return
    depends = F.conv2d(inside, torch.ones(1, 1, kernel, kernel), None, stride, padding, dilation)[0, 0] > 0
    how = Slide.of(kernel, stride, padding, dilation)
    assert how.output_size(size) == depends.shape
    grown = how.grow(box, depends.shape)
    window = how.window(grown)
    for first, last, lines in [(0, 2, depends.any(1)), (1, 3, depends.any(0))]:
        if depends.any():
            assert grown[first] == lines.nonzero()[0] and grown[last] == lines.nonzero()[-1] + 1
        assert 0 <= grown[first] < grown[last] <= len(lines)
    reach = dilation * (kernel - 1) + 1
    assert window[2] - window[0] == (grown[2] - grown[0] - 1) * stride + reach


# ------------------------------------------------------------------ any network


class Residual(nn.Module):
    def __init__(self, body, in_place):
        super().__init__()
        self.body, self.in_place = body, in_place

    def forward(self, x):
        y = self.body(x)
        if self.in_place:
            y += x
            return y
        return y + x


class Branches(nn.Module):
    def __init__(self, *branches):
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x):
        return torch.cat([branch(x) for branch in self.branches], 1)


class NormOverChannels(nn.Module):
    def forward(self, x):
        return F.layer_norm(x.permute(0, 2, 3, 1), x.shape[1:2]).permute(0, 3, 1, 2)


class ChannelsLast(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.linear = nn.Linear(channels, channels)

    def forward(self, x):
        return F.gelu(self.linear(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


class Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


FUNCTIONS = [
    lambda x: x * 0.5 + 1,
    lambda x: x * torch.linspace(1, 2, x.shape[1], dtype=x.dtype)[:, None, None],
    lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    lambda x: torch.maximum(x, -x[:, :1]),
    lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),  # differs between images everywhere
    lambda x: F.interpolate(x, scale_factor=2.0),  # no rule
    lambda x: F.pad(x, (1, 2, 0, 1), value=0.3),
    lambda x: F.pad(x, (1, 1, 2, 2), mode="replicate"),
]


@st.composite
def layers(draw, channels, side):
    """Return a layer for maps with ``channels`` channels and a shorter side of ``side`` pixels."""
    kind = draw(
        st.sampled_from(["conv", "conv", "pool", "norm", "act", "residual", "branches", "last", "function"])
    )
    kernel, stride = draw(st.integers(1, min(4, side))), draw(st.integers(1, 3))
    if kind == "conv":
        groups = draw(st.sampled_from([1, 2])) if channels % 2 == 0 else 1
        padding, dilation = draw(st.sampled_from([0, 1, 2, (1, 0)])), draw(st.integers(1, 2))
        if stride == 1 and draw(st.booleans()):
            kernel, padding = kernel | 1, "same"  # torch warns of even ones
        bias = draw(st.booleans())
        return nn.Conv2d(
            channels, draw(st.sampled_from([2, 4])), kernel, stride, padding, dilation, groups, bias
        )
    if kind == "pool":
        padding, ceil_mode = draw(st.integers(0, kernel // 2)), draw(st.booleans())
        if draw(st.booleans()):
            return nn.MaxPool2d(kernel, stride, padding, draw(st.integers(1, 2)), ceil_mode=ceil_mode)
        how = draw(st.booleans()), draw(st.sampled_from([None, None, 3]))
        return nn.AvgPool2d(kernel, stride, padding, ceil_mode, *how)
    if kind == "norm":
        return draw(st.sampled_from([nn.BatchNorm2d(channels), NormOverChannels()]))
    if kind == "act":
        some = [
            nn.ReLU(inplace=True),
            nn.ReLU6(),
            nn.GELU(),
            nn.SiLU(inplace=True),
            nn.PReLU(channels),
            nn.ELU(),
        ]
        # In place only on a tensor that autograd does not need.
        return nn.Sequential(Call(lambda x: x * 1.1), draw(st.sampled_from(some)))
    if kind == "residual":
        body = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels))
        return Residual(body, draw(st.booleans()))
    if kind == "branches":
        return Branches(
            *(nn.Conv2d(channels, 2, 2 * half + 1, padding=half) for half in (0, 2)), nn.Identity()
        )
    if kind == "last":
        return ChannelsLast(channels)
    return Call(draw(st.sampled_from(FUNCTIONS)))


@st.composite
def networks(draw):
    """Return a network and a canvas, which may be odd and not square."""
    torch.manual_seed(draw(st.integers(0, 99)))
    canvas = draw(st.tuples(st.integers(5, 22), st.integers(5, 22)))
    maps, made = torch.zeros(1, 3, *canvas), []
    for _ in range(draw(st.integers(1, 7))):
        layer = draw(layers(maps.shape[1], min(maps.shape[2:])))
        try:
            result = layer.eval()(maps.clone())
        except RuntimeError:  # the map is too small for it
            continue
        if 1 <= result.shape[1] <= 12 and max(result.shape[2:]) <= 30:
            made.append(layer)
            maps = result
    return freeze(nn.Sequential(*made)), canvas


@settings(deadline=None, max_examples=150)
@given(networks(), st.data())
def test_any_network_gives_the_same_with_sharing(case, data):
    network, canvas = case
    box = data.draw(boxes(*canvas))
    shared, region = scene(canvas, box, batch=data.draw(st.integers(1, 3)))
    pair = assert_exact(
        network, shared, region, box, data.draw(st.sampled_from([Limits(box=0.5), ALWAYS, ALWAYS]))
    )
    assert pair.reason is None
    with torch.no_grad():
        plain, held = network(put_together(shared, region, box)), pair.hold(shared)
        for _ in range(2):
            torch.testing.assert_close(pair(held, region, box), plain, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("distance", [0, 1, 2, 3])
def test_padding_that_repeats_pixels_near_the_edge(mode, distance):
    network = freeze(nn.Conv2d(3, 2, 3, padding=2, padding_mode=mode))
    for box in [(distance, 4, 8, 8), (4, 4, 8, 12 - distance)]:
        assert_exact(network, *scene((13, 12), box), box)


@pytest.mark.parametrize("count_padding", [True, False])
@pytest.mark.parametrize("ceil_mode", [True, False])
@pytest.mark.parametrize("box", [(0, 0, 2, 3), (7, 9, 10, 12), (4, 0, 6, 12)])
def test_average_pooling_at_the_edges(box, ceil_mode, count_padding):
    for kernel, stride, padding in [(3, 2, 1), ((3, 2), (2, 3), (1, 0)), (4, 3, 2)]:
        pool = nn.AvgPool2d(kernel, stride, padding, ceil_mode, count_padding)
        assert_exact(pool, *scene((10, 12), box), box)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("kernel", [2, (4, 3)])
def test_same_padding_of_even_kernels(kernel):
    network = freeze(nn.Conv2d(3, 2, kernel, padding="same"))
    assert_exact(network, *scene((9, 11), (0, 3, 2, 11)), (0, 3, 2, 11))


# ------------------------------------------------------------------ networks with a name


def timm_network(name, **settings):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=5, **settings)


class Logits(nn.Module):
    """The logits of a transformers classifier."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixels):
        return self.model(pixel_values=pixels).logits


def hf_network(kind, **settings):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(num_labels=5, **settings)
    return Logits(getattr(transformers, f"{kind}ForImageClassification")(config))


SMALL = {"hidden_sizes": [8, 16, 24, 32], "depths": [2, 1, 1, 1]}
NAMED = {
    "resnet18": {},
    "resnet50": {"layers": (1, 2, 1, 1)},
    "resnet26d": {"layers": (1, 1, 1, 1)},
    "resnext50_32x4d": {"layers": (1, 2, 1, 1)},
    "tf_efficientnet_lite0": {},
    "mobilenetv2_100": {},
    "vgg11": {"mlp_ratio": 0.01},
    "vgg11_bn": {"mlp_ratio": 0.01},
    "convnext_atto": {"depths": (2, 1, 2, 1)},
    "convnext_tiny": {"depths": (2, 1, 1, 1)},
    "densenet121": {"block_config": (3, 3, 3, 2)},
    "efficientnet_b0": {},
    "ghostnet_100": {},
    "vit_tiny_patch16_224": {"img_size": (64, 80), "depth": 2},
}


@pytest.mark.parametrize("name", NAMED)
def test_named_networks(name):
    network = freeze(timm_network(name, **NAMED[name]))
    pair = assert_exact(network, *scene((64, 80), box := (21, 30, 34, 49)), box)
    assert pair.reason is None


@pytest.mark.parametrize("kind", ["ResNet", "ConvNext", "RegNet"])
def test_named_networks_of_transformers(kind):
    stem = {} if kind == "ConvNext" else {"embedding_size": 8}
    network = freeze(hf_network(kind, **SMALL, **stem, **({"groups_width": 4} if kind == "RegNet" else {})))
    pair = assert_exact(network, *scene((64, 80), box := (21, 30, 34, 49)), box)
    assert pair.reason is None
    assert work(pair, (64, 80), box) < 0.95 * work(network, (64, 80), box)


def work(network, canvas, box, batch=8) -> int:
    """Return the number of floating point operations of a pass."""
    parts = [part.detach().to(dtype_of(network)) for part in scene(canvas, box, batch)]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(*parts, box) if isinstance(network, SplitNetwork) else network(put_together(*parts, box))
    return counter.get_total_flops()


def dtype_of(network) -> torch.dtype:
    module = network.network if isinstance(network, SplitNetwork) else network
    return next(module.parameters()).dtype


def test_resnet18_shares_as_much_as_the_receptive_field_allows():
    network = freeze(timm_network("resnet18"), dtype=torch.float32)
    seen = {}
    for name in ("conv1", "maxpool", "layer1", "layer2", "layer3", "layer4"):
        network.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: seen.update({name: output})
        )
    box = (96, 96, 128, 128)
    shared, region = scene((224, 224), box, dtype=torch.float32)
    with torch.no_grad():
        SplitNetwork(network, ALWAYS)(shared, region, box)
    sizes = {
        name: (out.layout.box[2] - out.layout.box[0], out.canvas[0])
        for name, out in seen.items()
        if isinstance(out, SplitMap)
    }
    assert sizes == {"conv1": (19, 112), "maxpool": (11, 56), "layer1": (19, 56), "layer2": (17, 28)}


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0"])
def test_only_a_part_of_the_maps_is_computed(name):
    """The time depends more on the large early maps than on the number of multiplications."""
    network, computed = freeze(timm_network(name), dtype=torch.float32), []

    def count(module, inputs, output):
        parts = output.parts.tensors if isinstance(output, SplitMap) else [output]
        computed.append(sum(part.numel() for part in parts))

    for module in network.modules():
        if not list(module.children()):
            module.register_forward_hook(count)
    box, numbers = (96, 96, 128, 128), []
    parts = [part.detach() for part in scene((224, 224), box, batch=16, dtype=torch.float32)]
    for compute in (SplitNetwork(network), lambda *parts: network(put_together(*parts))):
        with torch.no_grad():
            compute(*parts, box)
        numbers.append(sum(computed))
        computed.clear()
    assert numbers[0] < 0.4 * numbers[1]
