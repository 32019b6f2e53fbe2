"""A held map gives the same as one that is not held, with less work; a pass on a stale one is an error."""

import pytest
import torch
from test_sharing import ALWAYS, Call, scene, small_network, with_gradients
from torch.utils.flop_counter import FlopCounterMode

from clipvp.sharing import SplitNetwork, StaleError, put_together


def test_held_work_is_not_computed_again():
    pair, box = SplitNetwork(small_network()), (9, 9, 13, 13)
    shared, region = (part.detach() for part in scene((40, 40), box))
    held = pair.hold(shared)

    def flops(shared):
        with FlopCounterMode(display=False) as counter:
            pair(shared, region, box)
        return counter.get_total_flops()

    first, second, not_held = flops(held), flops(held), flops(shared)
    assert first == not_held and second < 0.2 * first


def test_held_works_for_any_box_and_batch_and_for_the_gradient_of_the_region():
    network = small_network()
    pair = SplitNetwork(network, ALWAYS)
    shared, _ = scene((24, 30), (0, 0, 1, 1))
    with torch.no_grad():
        held = pair.hold(shared)
    for box, batch in [((3, 4, 8, 8), 2), ((3, 4, 8, 8), 5), ((0, 20, 9, 30), 3), ((3, 4, 8, 8), 2)]:
        _, region = scene((24, 30), box, batch, seed=batch)
        plain = with_gradients(lambda region, box=box: network(put_together(shared, region, box)), region)
        ours = with_gradients(lambda region, box=box: pair(held, region, box), region)
        for one, other in zip(plain, ours, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("what", ["delta", "mask", "shared", "network"])
def test_a_write_to_any_tensor_of_the_held_work_makes_it_stale(what):
    network, box = small_network(), (3, 4, 8, 8)
    pair = SplitNetwork(network)
    delta, region = scene((24, 30), box)
    with torch.no_grad():
        mask = torch.ones_like(delta)
        shared = torch.sigmoid(delta) * mask
        held = pair.hold(shared, delta, mask)
        pair(held, region, box)
        assert held.fresh
        {"delta": delta, "mask": mask, "shared": shared, "network": network[0].weight}[what].add_(1)
        assert not held.fresh
        with pytest.raises(StaleError, match="call hold\\(\\) again"):
            pair(held, region, box)


def test_held_work_is_told_apart_by_the_tensors_it_was_made_from():
    pair = SplitNetwork(small_network())
    with torch.no_grad():
        delta, mask = scene((24, 30), (3, 4, 8, 8))[0], torch.ones(1)
        held = pair.hold(torch.sigmoid(delta) * mask, delta, mask)
        assert held.made_from_these([delta, mask]) and held.made_from_these((delta, mask))
        for others in ([delta.clone(), mask], [delta.view_as(delta), mask], [delta], [mask, delta], []):
            assert not held.made_from_these(others)
        assert not pair.hold(delta).made_from_these([])  # no tensors do not identify a map


def test_hold_refuses_to_drop_a_gradient():
    pair = SplitNetwork(small_network())
    shared, _ = scene((24, 30), (3, 4, 8, 8))
    with pytest.raises(ValueError, match="no_grad"):
        pair.hold(shared)


def test_held_under_inference_mode_and_under_another_autocast():
    network, box = small_network(torch.float32), (3, 4, 8, 8)
    pair = SplitNetwork(network, ALWAYS)
    with torch.inference_mode():
        shared, region = (part.detach() for part in scene((24, 30), box, dtype=torch.float32))
        held, whole = pair.hold(shared), put_together(shared, region, box)
        with torch.autocast("cpu", torch.bfloat16):
            assert pair(held, region, box).dtype == network(whole).dtype == torch.bfloat16
        torch.testing.assert_close(pair(held, region, box), network(whole))


def test_tensors_created_in_every_pass_are_not_taken_for_the_last_ones():
    scales = iter([1.0, 2.0, 3.0])
    network, box = Call(lambda x: x * torch.tensor(next(scales), dtype=x.dtype)), (3, 4, 8, 8)
    shared, region = (part.detach() for part in scene((24, 30), box))
    pair = SplitNetwork(network, ALWAYS)
    held, whole = pair.hold(shared), put_together(shared, region, box)
    for scale in (1.0, 2.0, 3.0):
        torch.testing.assert_close(pair(held, region, box), whole * scale)
