"""A pass that is given what it reads of the core equals one that computes it, under any other prompt."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_core import LIMITS, branched_networks, inside
from test_sharing import ALWAYS, Call, boxes, freeze, networks, scene, small_network
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from clipvp.sharing import CoreTape, SplitNetwork, put_together


def case_of(kind, canvas, box, core, batch, seed):
    """Return shared, region and box under one prompt; the core's pixels are the same for all seeds."""
    shared, region = scene(canvas, box, batch, seed)
    _, same = scene(canvas, (0, 0, *canvas), batch, 99)
    if kind == "frame":
        shared, box, region = None, (0, 0, *canvas), scene(canvas, (0, 0, *canvas), batch, seed)[1]
    top, left = box[:2]
    place = (
        slice(None),
        slice(None),
        slice(core[0] - top, core[2] - top),
        slice(core[1] - left, core[3] - left),
    )
    region = region.detach().clone()
    region[place] = same[:, :, core[0] : core[2], core[1] : core[3]].detach()
    return shared, region.requires_grad_(), box, place


def results(output, inputs, place):
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=output.dtype)
    found = torch.autograd.grad((output * direction).sum(), inputs, allow_unused=True, materialize_grads=True)
    found[-1][place] = 0  # in the core the gradient is not defined
    return [output.detach(), *found]


@settings(deadline=None, max_examples=80)
@given(st.one_of(networks(), branched_networks()), st.data())
def test_any_network_gives_the_same_with_what_it_reads_of_the_core(case, data):
    network, canvas = case
    kind = data.draw(st.sampled_from(["padding", "frame"]))
    box = data.draw(boxes(*canvas)) if kind == "padding" else (0, 0, *canvas)
    core = data.draw(st.one_of(st.just(box), inside(box)) if kind == "padding" else inside(box))
    batch, limits = data.draw(st.integers(1, 3)), data.draw(st.sampled_from(LIMITS))
    ours, share = SplitNetwork(network, limits), data.draw(st.sampled_from([0.0, 0.1, 0.3]))
    shared, region, place_of, _ = case_of(kind, canvas, box, core, batch, 0)
    tape = CoreTape(share)
    with torch.no_grad():
        ours(shared, region, place_of, core, tape)
        plan, values = tape.recorded()
    shared, region, place_of, place = case_of(kind, canvas, box, core, batch, 1)
    inputs = [x for x in (shared, region) if x is not None]
    whole = region if shared is None else put_together(shared, region, box)
    played = CoreTape(share, plan, values)
    plain = results(network(whole), inputs, place)
    for _ in range(2):
        found = results(ours(shared, region, place_of, core, played), inputs, place)
        for one, other in zip(plain, found, strict=True):
            assert (one - other).norm() <= 1e-10 * one.norm() + 1e-12
    with torch.no_grad():
        held = shared if shared is None else ours.hold(shared)
        torch.testing.assert_close(ours(held, region, place_of, core, played), plain[0])
    assert ours.reason is None


def kept(network, batch=2, share=0.0):
    shared, region, box, _ = case_of("padding", (40, 40), (4, 4, 36, 36), (4, 4, 36, 36), batch, 0)
    ours, tape = SplitNetwork(network, ALWAYS), CoreTape(share)
    with torch.no_grad():
        ours(shared, region, box, box, tape)
    return ours, shared, region, box, CoreTape(share, *tape.recorded())


def test_nothing_is_computed_in_the_core():
    ours, shared, region, box, tape = kept(small_network(), batch=8)

    def flops(*tapes):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            ours(shared, region, box, box, *tapes)
        return counter.get_total_flops()

    assert flops(tape) < 0.8 * flops()


def test_the_values_of_the_tape_are_what_the_ring_is_computed_from():
    ours, shared, region, box, tape = kept(small_network())
    with torch.no_grad():
        before = ours(shared, region, box, box, tape)
        tape.values[0] += 1
        after = ours(shared, region, box, box, tape)
    changed = (before != after).flatten(1).any(1)
    assert changed.tolist() == [True, False]


def test_a_network_that_reads_otherwise_is_told_apart():
    sizes = iter([3, 3, 5, 5])
    pools = {size: nn.MaxPool2d(size, 1, size // 2) for size in (3, 5)}
    network = nn.Sequential(small_network(), Call(lambda x: pools[next(sizes)](x)))
    with pytest.warns(UserWarning, match="runs on whole maps"):
        ours, shared, region, box, tape = kept(network)
        with torch.no_grad():
            ours(shared, region, box, box, tape)
            found = ours(shared, region, box, box, tape)
            whole = network[0](put_together(shared, region, box))
    torch.testing.assert_close(found, pools[5](whole))


def test_channels_last_is_as_exact():
    network = small_network().to(memory_format=torch.channels_last)
    box, parts = (4, 4, 36, 36), []
    network[2].register_forward_hook(
        lambda module, inputs, out: parts.extend(getattr(out, "parts", out).tensors)
    )
    ours, tape = SplitNetwork(network, ALWAYS), CoreTape(0.0)

    def last(*tensors):
        return [x.detach().contiguous(memory_format=torch.channels_last).requires_grad_() for x in tensors]

    shared, region, _, _ = case_of("padding", (40, 40), box, box, 2, 0)
    with torch.no_grad():
        ours(*last(shared, region), box, box, tape)
    shared, region, _, place = case_of("padding", (40, 40), box, box, 2, 1)
    inputs = last(shared, region)
    parts.clear()
    found = results(ours(*inputs, box, box, CoreTape(0.0, *tape.recorded())), inputs, place)
    assert parts and all(x.is_contiguous(memory_format=torch.channels_last) for x in parts if x is not None)
    inputs = [shared, region]
    plain = results(small_network()(put_together(*inputs, box)), inputs, place)
    for one, other in zip(plain, found, strict=True):
        assert (one - other).norm() <= 1e-10 * one.norm()


@pytest.mark.parametrize("kind", ["padding", "frame"])
def test_the_tower_of_a_clip_with_an_attention_pool(kind):
    from open_clip.modified_resnet import ModifiedResNet

    torch.manual_seed(0)
    network = freeze(ModifiedResNet([1, 1, 1, 1], 16, 4, image_size=64, width=8))
    box = (4, 4, 60, 60) if kind == "padding" else (0, 0, 64, 64)
    core, ours, tape = (4, 4, 60, 60), SplitNetwork(network, ALWAYS), CoreTape(0.0)
    shared, region, *_ = case_of(kind, (64, 64), box, core, 2, 0)
    with torch.no_grad():
        ours(shared, region, box, core, tape)
    shared, region, box, place = case_of(kind, (64, 64), box, core, 2, 1)
    inputs = [x for x in (shared, region) if x is not None]
    whole = region if shared is None else put_together(shared, region, box)
    plan, values = tape.recorded()
    found = results(ours(shared, region, box, core, CoreTape(0.0, plan, values)), inputs, place)
    for one, other in zip(results(network(whole), inputs, place), found, strict=True):
        assert (one - other).norm() <= 1e-10 * one.norm()
    assert plan and values.dtype == torch.float64 and ours.reason is None
