"""SMM, LoR-VP, AutoVP, VP and EVP are their formulas, written out here, and what they draw is the seed's."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_prompts import MEAN, STD, filled, fresh, pictures, source_of
from torch.nn import functional as F

from clipvp.config.schema import PromptConfig
from clipvp.prompts.border import BorderPrompt
from clipvp.prompts.build import build_prompt
from clipvp.prompts.low_rank import LowRankPrompt
from clipvp.prompts.padding import PaddingPrompt
from clipvp.prompts.part_norm import PartNorm
from clipvp.prompts.scaled import ScaledPrompt
from clipvp.prompts.smm import SMMPrompt
from clipvp.registry import PROMPTS, UserError
from clipvp.training.normalized_sgd import NormalizedSGD

SIDES = st.integers(1, 13)


def paper_prompts():
    return {
        "smm": SMMPrompt((12, 9), MEAN, STD, 4, [2, 3], seed=3),
        "low_rank": LowRankPrompt((7, 9), 2, STD, seed=3),
        "scaled": ScaledPrompt((12, 9), (6, 5)),
        "border, normal": BorderPrompt((9, 7), 2, STD, start="normal", seed=3),
        "padding, free": PaddingPrompt((9, 12), (4, 7), bounded=False),
    }


@pytest.mark.parametrize("name", paper_prompts())
def test_settings_and_state_build_the_prompt_again_and_images_stay(name):
    prompt = paper_prompts()[name]
    with torch.no_grad():
        for value in prompt.parameters():
            value += 0.1
    images = pictures(prompt)
    before = images.clone()
    again = PROMPTS.get(prompt.kind)(**json.loads(json.dumps(prompt.settings)))
    again.load_state_dict(prompt.state_dict())
    prompt.eval(), again.eval()
    pixels = prompt(images)
    assert pixels.shape == (2, 3, *prompt.canvas) and torch.equal(again(images), pixels)
    assert again.settings == prompt.settings and torch.equal(images, before)
    pixels.square().sum().backward()
    groups = [id(value) for own in prompt.parameter_groups().values() for value in own]
    assert sorted(groups) == sorted(id(value) for value in prompt.parameters())
    assert all(value.grad is not None for value in prompt.parameters())


@pytest.mark.parametrize("kind", ["smm", "low_rank", "border"])
def test_the_seed_decides_what_a_prompt_starts_with(kind):
    own = {"border": {"width": 3, "start": "normal"}}.get(kind, {})
    state = torch.random.get_rng_state()

    def start(seed):
        prompt = build_prompt(PromptConfig(kind=kind, **own), source_of((10, 12)), seed=seed)
        assert prompt.settings["seed"] == seed
        learned = prompt.learned()
        assert torch.equal(learned.pixels, learned.start)
        return torch.cat([value.detach().flatten() for value in prompt.parameters()])

    assert torch.equal(start(5), start(5)) and not torch.equal(start(5), start(6))
    assert torch.equal(torch.random.get_rng_state(), state)  # no global random state is moved


# SMM


def plain_mask(prompt, normalised, training):
    """Return the mask network's output on normalised images, with torch's own layers."""
    pools, layers, channels = prompt.patch_size.bit_length() - 1, [], [3, *prompt.settings["channels"]]
    for place in range(len(channels) - 1):
        layers += [torch.nn.Conv2d(*channels[place : place + 2], 3, padding=1)]
        layers += [torch.nn.BatchNorm2d(channels[place + 1]), torch.nn.ReLU()]
        layers += [torch.nn.MaxPool2d(2)] if place < pools else []
    network = torch.nn.Sequential(*layers, torch.nn.Conv2d(channels[-1], 3, 3, padding=1))
    own = prompt.network.state_dict()
    network.load_state_dict({name: own.get(name, torch.zeros(())) for name in network.state_dict()})
    return network.train(training)(normalised), network


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("patch_size, channels", [(8, None), (2, [4, 6]), (1, [4])])
def test_smm_is_its_formula(patch_size, channels, training):
    prompt = SMMPrompt((16, 32), MEAN, STD, patch_size, channels, seed=1).train(training)
    with torch.no_grad():
        prompt.delta.normal_(generator=torch.Generator().manual_seed(0))
    images = pictures(prompt, 3)
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    normalised = (images - mean) / std
    values, network = plain_mask(prompt, normalised, training)
    expected = normalised + prompt.delta * F.interpolate(values, scale_factor=patch_size, mode="nearest")
    torch.testing.assert_close((prompt(images) - mean) / std, expected, rtol=1e-4, atol=1e-5)
    for norm, plain in zip(
        (m for m in prompt.modules() if isinstance(m, PartNorm)),
        (m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)),
        strict=True,
    ):
        norm.update(
            norm.take()
        )  # of a batch in training mode what torch's norm has done by itself, else nothing
        torch.testing.assert_close(norm.running_mean, plain.running_mean)
        torch.testing.assert_close(norm.running_var, plain.running_var)
    prompt.eval()
    both, alone = prompt(images), prompt(images[1:2])
    torch.testing.assert_close(both[1:2], alone)  # in evaluation no image sees the others


def test_smm_has_the_sizes_of_the_paper():
    assert SMMPrompt((224, 224), MEAN, STD).num_trainable() == 3 * 224 * 224 + 26_499
    assert SMMPrompt((384, 384), MEAN, STD).num_trainable() == 3 * 384 * 384 + 102_339
    assert SMMPrompt((224, 224), MEAN, STD).network(torch.zeros(1, 3, 224, 224)).shape == (1, 3, 28, 28)
    assert list(SMMPrompt((16, 16), MEAN, STD).parameter_groups()) == ["prompt", "prompt.mask"]


def test_smm_leaves_the_images_unchanged_at_the_start_and_takes_any_canvas():
    prompt = SMMPrompt((13, 21), MEAN, STD, seed=0)
    images = pictures(prompt)
    assert torch.equal(prompt(images), images)
    masks = prompt.masks(images)
    assert masks.shape == (2, 3, 13, 21) and len(masks[0, 0].unique()) == 2 * 3
    assert (masks[..., :8, 8:16] == masks[..., :1, 8:9]).all()  # one value on a patch
    assert (SMMPrompt((16, 16), MEAN, STD).masks(torch.rand(1, 3, 16, 16)) == 0).all()


@pytest.mark.parametrize(
    "patch_size, channels, words",
    [
        (16, None, "prompt.patch_size: 16 is larger than the source's canvas 12x20"),
        (4, [8], "prompt.patch_size: 4 needs 2 hidden layers, and prompt.channels has 1"),
        (3, None, "prompt.patch_size: 3 is not a power of two"),
        (4, [8, 0], "prompt.channels: 0 is not allowed"),
    ],
)
def test_a_mask_network_that_does_not_fit_is_refused(patch_size, channels, words):
    with pytest.raises(UserError, match=words):
        build_prompt(PromptConfig(kind="smm", patch_size=patch_size, channels=channels), source_of((12, 20)))


def test_a_part_norm_with_one_value_keeps_nothing():
    norm = PartNorm(2).train()
    norm(torch.rand(3, 2, 4, 4))
    assert torch.equal(norm(torch.ones(1, 2, 1, 1)), torch.full((1, 2, 1, 1), 1 / (1 + 1e-5) ** 0.5))
    before = norm.running_mean.clone()
    norm.update(norm.take())
    assert torch.equal(norm.running_mean, before)


# LoR-VP


@settings(max_examples=30, deadline=None)
@given(SIDES, SIDES, st.booleans(), st.data())
def test_low_rank_is_its_formula(height, width, clip, data):
    rank = data.draw(st.integers(1, min(height, width)))
    prompt = filled(LowRankPrompt((height, width), rank, STD, clip))
    images = pictures(prompt)
    expected = images.double().clone()
    for channel in range(3):
        for row in range(height):
            for column in range(width):
                terms = (
                    prompt.left[channel, row, i].item() * prompt.right[channel, i, column].item()
                    for i in range(rank)
                )
                expected[:, channel, row, column] += STD[channel] * sum(terms)
    expected = expected.clamp(0, 1) if clip else expected
    torch.testing.assert_close(prompt(images).double(), expected, rtol=1e-5, atol=1e-5)


def test_low_rank_has_the_paper_s_numbers_and_starts_at_nothing():
    prompt = LowRankPrompt((224, 224), seed=0)
    assert prompt.num_trainable() == 5376 and (prompt.left == 0).all()
    assert 0.009 < prompt.right.std() < 0.011
    images = pictures(prompt, 1)
    assert torch.equal(prompt(images), images)
    with pytest.raises(UserError, match="prompt.rank: 11 is above the canvas 10x12"):
        build_prompt(PromptConfig(kind="low_rank", rank=11), source_of((10, 12)))
    with pytest.raises(UserError, match="prompt.start: a low_rank prompt starts at zeros"):
        PromptConfig(kind="low_rank", start="normal")


# AutoVP


@settings(max_examples=40, deadline=None)
@given(SIDES, SIDES, st.data())
def test_scaled_at_a_scale_of_one_is_the_padding_prompt(height, width, data):
    size = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    scaled, padding = ScaledPrompt((height, width), size), PaddingPrompt((height, width), size)
    filled(padding)
    with torch.no_grad():
        scaled.delta.copy_(padding.delta)
    images = pictures(scaled)
    torch.testing.assert_close(scaled(images), padding(images), rtol=0, atol=1e-5)
    assert scaled.num_trainable() == padding.num_trainable() + 1
    assert torch.equal(scaled.learned().mask, padding.learned().mask)
    torch.testing.assert_close(scaled.learned().pixels, padding.learned().pixels)


@pytest.mark.parametrize("scale", [0.1, 0.7, 1.3, 5.0])
def test_scaled_interpolates_around_the_centre_and_the_frame_follows(scale):
    prompt = ScaledPrompt((14, 20), (6, 8), scale)
    images = pictures(prompt, 1)
    with torch.no_grad():
        prompt.delta.fill_(9)
    pixels, frame = prompt(images)[0], torch.sigmoid(torch.tensor(9.0))
    for y in range(14):
        for x in range(20):
            # where the middle of the pixel lies in the image, in pixels from its top left corner
            v, u = (y + 0.5 - 7) / scale + 3, (x + 0.5 - 10) / scale + 4
            if not (0 < v < 6 and 0 < u < 8):
                assert (pixels[:, y, x] == frame).all()
                continue
            v, u = min(max(v - 0.5, 0), 5), min(max(u - 0.5, 0), 7)
            top, left = int(v), int(u)
            bottom, right = min(top + 1, 5), min(left + 1, 7)
            upper = images[0, :, top, left] * (1 - (u - left)) + images[0, :, top, right] * (u - left)
            lower = images[0, :, bottom, left] * (1 - (u - left)) + images[0, :, bottom, right] * (u - left)
            torch.testing.assert_close(pixels[:, y, x], upper * (1 - (v - top)) + lower * (v - top))
    inside = ~prompt.learned().mask
    assert inside.any(1).sum() == min(14, round(6 * scale / 2 + 1e-9) * 2) or scale == 0.1


def test_the_scale_s_gradient_is_that_of_finite_differences_and_it_finds_the_size():
    ramp = torch.linspace(0.2, 0.8, 16).expand(1, 3, 16, 16).contiguous()
    prompt = ScaledPrompt((16, 16), (16, 16), 1.5)
    wanted = ScaledPrompt((16, 16), (16, 16), 2.5)(ramp).detach()

    def loss():
        return (prompt(ramp) - wanted).square().sum()

    loss().backward()
    gradient, step = prompt.scale.grad.item(), 1e-3
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            prompt.scale.fill_(1.5 + sign * step)
            values.append(loss().item())
    assert gradient == pytest.approx((values[0] - values[1]) / (2 * step), rel=0.02)
    optimizer = torch.optim.Adam([prompt.scale], lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        prompt.constrain()
    assert prompt.scale.item() == pytest.approx(2.5, abs=0.05)
    with torch.no_grad():
        prompt.scale.fill_(-3)
        prompt.constrain()
    assert prompt.scale.item() == pytest.approx(0.1)


def test_a_scaled_prompt_keeps_what_its_frame_hides():
    prompt = filled(ScaledPrompt((9, 12), (4, 7)))
    weights = torch.rand(3, 9, 12, generator=torch.Generator().manual_seed(2))
    prompt.masks_gradient = False  # as an optimiser of the whole canvas has it
    (prompt(pictures(prompt)) * weights).sum().backward()
    assert ((prompt.delta.grad != 0) == prompt.frame()).all()
    before, optimizer = prompt.delta.detach().clone(), NormalizedSGD([prompt.delta], {"lr": 3.0})
    optimizer.step()
    assert (prompt.delta.detach() - before).norm().item() == pytest.approx(3)
    assert torch.equal((prompt.delta.detach() != before).any(0), prompt.frame())


@pytest.mark.parametrize(
    "own, words",
    [
        ({"image_size": 11}, "prompt.image_size: 11x11 is not 1 pixel up to the source's canvas 10x12"),
        ({"image_scale": 6.0}, "prompt.image_scale: 6.0 is not 0.1 to 5"),
    ],
)
def test_a_scaled_image_that_does_not_fit_is_refused(own, words):
    with pytest.raises(UserError, match=words):
        build_prompt(PromptConfig(kind="scaled", **own), source_of((10, 12)))


# VP and EVP


def test_a_border_starts_at_normal_numbers_in_normalised_space():
    config = PromptConfig(kind="border", width=30, space="normalized", start="normal")
    prompt = build_prompt(config, source_of((224, 224)), seed=4)
    assert prompt.num_trainable() == 69_840
    assert prompt.delta.detach().std().item() == pytest.approx(1, abs=0.02)
    images = pictures(prompt, 1)
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    expected = (images - mean) / std + prompt.delta * prompt.mask
    torch.testing.assert_close((prompt(images) - mean) / std, expected, rtol=1e-4, atol=1e-5)
    before = prompt.learned().start
    with torch.no_grad():
        prompt.delta.add_(1)
    assert torch.equal(prompt.learned().start, before)  # what it started with is not forgotten
    assert torch.equal(fresh(prompt).learned().pixels, before)


def test_a_free_frame_is_delta_itself():
    prompt = filled(PaddingPrompt((9, 12), (4, 7), bounded=False))
    images = pictures(prompt)
    expected = F.pad(images, (3, 2, 3, 2)) + prompt.delta * prompt.mask
    assert torch.equal(prompt(images), expected)
    assert (PaddingPrompt((5, 5), (3, 3), bounded=False)(torch.ones(1, 3, 3, 3))[0, 0, 0] == 0).all()


@pytest.mark.parametrize("bounded", [True, False])
def test_without_masking_the_gradient_is_that_of_the_whole_canvas(bounded):
    prompt = filled(PaddingPrompt((9, 12), (4, 7), bounded=bounded))
    images = pictures(prompt)
    weights = torch.rand(3, 9, 12, generator=torch.Generator().manual_seed(2))
    masked = torch.autograd.grad((prompt(images) * weights).sum(), prompt.delta)[0]
    pixels = prompt(images).detach()
    prompt.masks_gradient = False
    whole = torch.autograd.grad((prompt(images) * weights).sum(), prompt.delta)[0]
    slope = torch.sigmoid(prompt.delta) * (1 - torch.sigmoid(prompt.delta)) if bounded else 1
    torch.testing.assert_close(whole, 2 * weights * slope)
    torch.testing.assert_close(whole * prompt.mask, masked)
    assert torch.equal(prompt(images), pixels) and prompt.surroundings() is None
