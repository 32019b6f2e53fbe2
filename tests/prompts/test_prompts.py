"""Every prompt is its formula, written out here with loops; it never touches the images it is given."""

import json
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipvp.config.schema import PromptConfig
from clipvp.images import Resize
from clipvp.prompts.additive import AdditivePrompt
from clipvp.prompts.base import VisualPrompt
from clipvp.prompts.border import BorderPrompt
from clipvp.prompts.build import build_prompt
from clipvp.prompts.full import FullPrompt
from clipvp.prompts.masked import MaskedPrompt
from clipvp.prompts.none import NoPrompt
from clipvp.prompts.padding import PaddingPrompt
from clipvp.prompts.patch import PatchPrompt
from clipvp.registry import PROMPTS, UserError

STD = [0.25, 0.5, 0.125]
MEAN = [0.5, 0.4, 0.3]
SIDES = st.integers(1, 13)


def source_of(canvas) -> SimpleNamespace:
    """Return what a prompt is built for: a canvas and a normalisation."""
    own = Resize(tuple(canvas), "crop", 0.9, "bicubic")
    preprocessing = SimpleNamespace(resize=own, mean=tuple(MEAN), std=tuple(STD))
    return SimpleNamespace(canvas=tuple(canvas), resize=own, preprocessing=preprocessing)


def filled(prompt: VisualPrompt, seed: int = 0) -> VisualPrompt:
    """Give the parameters values everywhere, inside the mask and outside."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in prompt.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return prompt


def pictures(prompt: VisualPrompt, count: int = 2, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, *prompt.image_size, generator=generator)


def some_prompts() -> dict[str, VisualPrompt]:
    return {
        "padding": PaddingPrompt((9, 12), (4, 7)),
        "padding, no frame": PaddingPrompt((5, 5), (5, 5)),
        "border": BorderPrompt((9, 12), 2),
        "border, all": BorderPrompt((8, 8), 4),
        "border, normalized": BorderPrompt((9, 7), 3, STD),
        "border, clipped": BorderPrompt((7, 7), 2, None, True),
        "patch": PatchPrompt((8, 11), 3, (2, 5)),
        "patch, normalized": PatchPrompt((8, 11), 3, (5, 8), STD),
        "full": FullPrompt((6, 9)),
        "full, clipped": FullPrompt((6, 9), STD, True),
    }


def all_prompts() -> dict[str, VisualPrompt]:
    return {**some_prompts(), "none": NoPrompt((5, 7))}


# The formulas, pixel by pixel


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, st.data())
def test_padding_is_its_formula(height, width, data):
    h, w = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    prompt = filled(PaddingPrompt((height, width), (h, w)))
    images = pictures(prompt)
    top, left = (height - h + 1) // 2, (width - w + 1) // 2
    bottom, right = (height - h) // 2, (width - w) // 2
    assert (top + h + bottom, left + w + right) == (height, width)
    frame = 1 / (1 + torch.exp(-prompt.delta.detach().double()))
    expected = torch.empty(2, 3, height, width, dtype=torch.float64)
    for y in range(height):
        for x in range(width):
            inside = top <= y < top + h and left <= x < left + w
            expected[:, :, y, x] = images[:, :, y - top, x - left].double() if inside else frame[:, y, x]
    torch.testing.assert_close(prompt(images).double(), expected, rtol=0, atol=1e-6)
    inner = prompt(images)[:, :, top : top + h, left : left + w]
    assert torch.equal(inner, images)  # the image itself, to the bit
    assert prompt.num_trainable() == 3 * (height * width - h * w)


@settings(max_examples=30, deadline=None)
@given(SIDES, SIDES, st.data())
def test_padding_acts_where_the_images_are_empty(height, width, data):
    h, w = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    prompt = filled(PaddingPrompt((height, width), (h, w), empty="lower_triangle"))
    above = torch.ones(h, w).triu(1)
    images = pictures(prompt) * above  # nothing on the diagonal and below
    top, left, bottom, right = prompt.box
    inner, frame = prompt(images)[:, :, top:bottom, left:right], torch.sigmoid(prompt.delta)
    expected = torch.where(above > 0, images, frame[:, top:bottom, left:right])
    assert torch.equal(inner, expected)
    assert prompt.num_trainable() == 3 * (height * width - int(above.sum()))
    assert prompt.surroundings() is None  # the images do not stand in it unchanged
    again = PaddingPrompt(**prompt.settings)
    assert torch.equal(again.mask, prompt.mask)


def test_a_task_says_where_its_images_are_empty():
    config = PromptConfig(kind="padding", image_size=4)
    source = source_of((8, 8))
    acting = build_prompt(config, source, "lower_triangle")
    assert acting.settings["empty"] == "lower_triangle"
    assert torch.equal(acting.mask, PaddingPrompt((8, 8), (4, 4), empty="lower_triangle").mask)
    assert "empty" not in build_prompt(config, source).settings
    border = PromptConfig(kind="border", width=2)
    assert torch.equal(build_prompt(border, source, "lower_triangle").mask, BorderPrompt((8, 8), 2).mask)
    with pytest.raises(UserError, match="empty: unknown value 'upper'; .*lower_triangle"):
        PaddingPrompt((8, 8), (4, 4), empty="upper")


def test_padding_starts_grey_and_odd_rests_go_to_the_top_left():
    prompt = PaddingPrompt((6, 5), (3, 2))
    pixels = prompt(torch.ones(1, 3, 3, 2))[0, 0]
    grey = 0.5
    assert pixels.tolist() == [
        [grey] * 5,
        [grey] * 5,
        [grey, grey, 1, 1, grey],
        [grey, grey, 1, 1, grey],
        [grey, grey, 1, 1, grey],
        [grey] * 5,
    ]


def added(prompt, acts, scale, clip, images):
    """Return ``x + delta * scale`` where ``acts(y, x)``, the plain way."""
    expected = images.double().clone()
    for y in range(prompt.canvas[0]):
        for x in range(prompt.canvas[1]):
            if acts(y, x):
                for channel in range(3):
                    expected[:, channel, y, x] += prompt.delta[channel, y, x].item() * scale[channel]
    return expected.clamp(0, 1) if clip else expected


ADDITIVE = settings(max_examples=40, deadline=None)
SCALES = st.sampled_from([None, STD])


@ADDITIVE
@given(SIDES, SIDES, SCALES, st.booleans(), st.data())
def test_border_is_its_formula(height, width, scale, clip, data):
    wide = data.draw(st.integers(0, min(height, width) // 2))
    prompt = filled(BorderPrompt((height, width), wide, scale, clip))
    images = pictures(prompt)

    def acts(y, x):
        return y < wide or x < wide or y >= height - wide or x >= width - wide

    expected = added(prompt, acts, scale or [1, 1, 1], clip, images)
    torch.testing.assert_close(prompt(images).double(), expected, rtol=0, atol=1e-6)
    assert prompt.num_trainable() == 3 * sum(acts(y, x) for y in range(height) for x in range(width))


@ADDITIVE
@given(SIDES, SIDES, SCALES, st.booleans(), st.data())
def test_patch_is_its_formula(height, width, scale, clip, data):
    size = data.draw(st.integers(1, min(height, width)))
    top, left = data.draw(st.integers(0, height - size)), data.draw(st.integers(0, width - size))
    prompt = filled(PatchPrompt((height, width), size, (top, left), scale, clip))
    images = pictures(prompt)

    def acts(y, x):
        return top <= y < top + size and left <= x < left + size

    expected = added(prompt, acts, scale or [1, 1, 1], clip, images)
    torch.testing.assert_close(prompt(images).double(), expected, rtol=0, atol=1e-6)
    assert prompt.num_trainable() == 3 * size * size


@ADDITIVE
@given(SIDES, SIDES, SCALES, st.booleans())
def test_full_is_its_formula(height, width, scale, clip):
    prompt = filled(FullPrompt((height, width), scale, clip))
    images = pictures(prompt)
    expected = added(prompt, lambda y, x: True, scale or [1, 1, 1], clip, images)
    torch.testing.assert_close(prompt(images).double(), expected, rtol=0, atol=1e-6)
    assert prompt.num_trainable() == 3 * height * width


def test_none_gives_the_images_themselves_and_trains_nothing():
    prompt = NoPrompt((4, 6))
    images = pictures(prompt)
    assert torch.equal(prompt(images), images)
    assert prompt.num_trainable() == 0 and not list(prompt.parameters())
    assert prompt.learned() is None and not prompt.state_dict()


@pytest.mark.parametrize("kind", ["border", "patch", "full"])
def test_normalized_space_adds_delta_after_the_normalisation(kind):
    own = {"border": {"width": 2}, "patch": {"patch_size": 3, "patch_position": [1, 2]}, "full": {}}[kind]
    config = PromptConfig(kind=kind, space="normalized", **own)
    prompt = filled(build_prompt(config, source_of((7, 9))))
    images = pictures(prompt)
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    after = (images - mean) / std + prompt.delta * prompt.mask
    torch.testing.assert_close((prompt(images) - mean) / std, after, rtol=1e-5, atol=1e-6)


def test_pixels_leave_the_range_only_without_clip():
    for clip in (False, True):
        prompt = FullPrompt((4, 4), clip=clip)
        with torch.no_grad():
            prompt.delta.fill_(3)
        pixels = prompt(torch.full((1, 3, 4, 4), 0.5))
        assert pixels.unique().tolist() == ([1.0] if clip else [3.5])


# What holds for every prompt


@pytest.mark.parametrize("name", some_prompts())
def test_the_images_are_never_modified(name):
    prompt = filled(some_prompts()[name])
    images = pictures(prompt)
    before = images.clone()
    pixels = prompt(images)
    pixels.sum().backward()
    with torch.no_grad():
        pixels.add_(1)  # the pixels do not share the memory of the images
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", some_prompts())
def test_the_gradient_is_nonzero_exactly_where_the_mask_is_one(name):
    prompt = filled(some_prompts()[name])
    images = torch.full((2, 3, *prompt.image_size), 0.5)
    with torch.no_grad():
        prompt.delta.mul_(0.01)  # no pixel is clipped
    prompt(images).sum().backward()
    acts = prompt.mask.expand_as(prompt.delta) == 1
    assert ((prompt.mask == 0) | (prompt.mask == 1)).all()
    assert torch.equal(prompt.delta.grad != 0, acts)
    assert prompt.num_trainable() == int(acts.sum())


@pytest.mark.parametrize("name", some_prompts())
def test_what_was_learned_is_what_is_added(name):
    prompt = filled(some_prompts()[name])
    learned = prompt.learned()
    assert learned.pixels.shape == (3, *prompt.canvas) and not learned.pixels.requires_grad
    if "clipped" not in name:
        torch.testing.assert_close(prompt(torch.zeros(1, 3, *prompt.image_size))[0], learned.pixels)


@pytest.mark.parametrize("name", some_prompts())
def test_the_learned_picture_says_where_and_how_the_prompt_acts(name):
    prompt = filled(some_prompts()[name])
    learned, images = prompt.learned(), pictures(prompt, 1)
    assert learned.mask.dtype == torch.bool and learned.mask.shape == prompt.canvas
    if "clipped" in name:
        prompt = type(prompt)(**{**prompt.settings, "clip": False})
        filled(prompt)
    pixels = prompt(images)[0]
    padded = images[0] if learned.added else torch.nn.functional.pad(images[0], pad_of(prompt))
    shown = padded + learned.pixels if learned.added else torch.where(learned.mask, learned.pixels, padded)
    torch.testing.assert_close(pixels, shown, rtol=0, atol=1e-6)
    assert ((pixels != padded).any(0) <= learned.mask).all()  # outside the mask the image is unchanged
    assert torch.equal(learned.start, fresh(prompt).learned().pixels)
    assert torch.equal(fresh(prompt).learned().start, fresh(prompt).learned().pixels)


def pad_of(prompt: PaddingPrompt) -> tuple[int, int, int, int]:
    top, left, bottom, right = prompt.box
    return left, prompt.canvas[1] - right, top, prompt.canvas[0] - bottom


def fresh(prompt: VisualPrompt) -> VisualPrompt:
    """Return the prompt as it is before training."""
    return type(prompt)(**prompt.settings)


@pytest.mark.parametrize("name", all_prompts())
def test_settings_build_the_prompt_again(name):
    prompt = filled(all_prompts()[name])
    again = PROMPTS.get(prompt.kind)(**json.loads(json.dumps(prompt.settings)))
    again.load_state_dict(prompt.state_dict())
    images = pictures(prompt)
    assert type(again) is type(prompt) and again.settings == prompt.settings
    assert torch.equal(again(images), prompt(images))
    assert list(prompt.state_dict()) == ([] if name == "none" else ["delta"])


@pytest.mark.parametrize("name", all_prompts())
def test_one_view_is_merged_to_itself_and_parameters_are_in_one_group(name):
    prompt = all_prompts()[name]
    outputs = torch.randn(4, 5)
    assert prompt.views == 1 and torch.equal(prompt.merge(outputs), outputs)
    assert list(prompt.parameter_groups()) == ["prompt"]
    groups = [id(parameter) for own in prompt.parameter_groups().values() for parameter in own]
    assert groups == [id(parameter) for parameter in prompt.parameters()]


@pytest.mark.parametrize("name", all_prompts())
def test_surroundings_and_image_are_put_together_to_the_prompted_pixels(name):
    prompt = filled(all_prompts()[name])
    if prompt.surroundings() is None:
        assert not isinstance(prompt, PaddingPrompt)
        return
    images = pictures(prompt)
    pixels, (top, left, bottom, right) = prompt.surroundings()
    whole = pixels.expand(2, -1, -1, -1).clone()
    whole[:, :, top:bottom, left:right] = images
    assert pixels.shape == (1, 3, *prompt.canvas) and pixels.isfinite().all()
    assert torch.equal(whole, prompt(images))


@pytest.mark.parametrize("name", all_prompts())
def test_no_pixel_where_a_prompt_does_not_act_depends_on_what_trains(name):
    prompt = filled(all_prompts()[name])
    acting = prompt.acts_on()
    if acting is None:
        return
    (top, left, bottom, right), hole = acting
    acts = torch.zeros(prompt.canvas, dtype=torch.bool)
    acts[top:bottom, left:right] = True
    if hole is not None:
        assert top <= hole[0] < hole[2] <= bottom and left <= hole[1] < hole[3] <= right
        acts[hole[0] : hole[2], hole[1] : hole[3]] = False
    images = pictures(prompt)
    before = prompt(images)
    filled(prompt, seed=5)
    changed = (prompt(images) != before).any(0).any(0)
    assert changed.any() == acts.any() and not changed[~acts].any()


def test_a_prompt_that_makes_other_pixels_says_itself_where_it_acts():
    class Whole(BorderPrompt):
        def forward(self, images):
            return images + self.delta

    class Same(BorderPrompt):
        pass

    class Everywhere(BorderPrompt):
        def __init__(self, canvas, width):
            super().__init__(canvas, width)
            self.mask.fill_(1)

    assert Whole((9, 12), 2).acts_on() is None and Everywhere((9, 12), 2).acts_on() is None
    assert Same((9, 12), 2).acts_on() == BorderPrompt((9, 12), 2).acts_on()


def test_a_mixin_that_makes_other_pixels_says_itself_where_it_acts():
    class Plain:
        def forward(self, images):
            return images + self.delta

    class Other(AdditivePrompt):
        def pixels(self, delta):
            return delta

    class Named:
        name = "harmless"

    class First(Plain, BorderPrompt):
        pass

    class Second(BorderPrompt, Other):
        pass

    class Harmless(Named, BorderPrompt):
        pass

    class Says(Plain, BorderPrompt):
        def acts_on(self):
            return (0, 0, *self.canvas), None

    class Below(Says):
        pass

    def acts(kind):
        return kind((9, 12), 2).acts_on()

    assert acts(First) is None and acts(Second) is None
    assert acts(Harmless) == acts(BorderPrompt) and acts(Says) == acts(Below) == ((0, 0, 9, 12), None)


def test_prompts_say_where_they_act():
    everywhere = (0, 0, 9, 12)
    assert PaddingPrompt((9, 12), (4, 7)).acts_on() == (everywhere, (3, 3, 7, 10))
    assert PaddingPrompt((9, 12), (4, 7), empty="lower_triangle").acts_on() == (everywhere, None)
    assert BorderPrompt((9, 12), 2).acts_on() == (everywhere, (2, 2, 7, 10))
    assert PatchPrompt((9, 12), 3, (2, 5)).acts_on() == ((2, 5, 5, 8), None)
    assert FullPrompt((9, 12)).acts_on() is None


@pytest.mark.parametrize("name", all_prompts())
@pytest.mark.parametrize("shape", [(2, 3, 5, 3), (3, 9, 12), (1, 1, 9, 12), (1, 3, 100, 100)])
def test_images_of_another_shape_are_refused(name, shape):
    prompt = all_prompts()[name]
    with pytest.raises(ValueError, match=rf"takes images \(B, 3, {prompt.image_size[0]}, "):
        prompt(torch.zeros(shape))


def test_several_views_need_a_way_to_merge_them():
    class Two(VisualPrompt):
        kind, views = "two", 2

        def forward(self, images):
            return images.repeat(2, 1, 1, 1)

    with pytest.raises(TypeError, match="Two has 2 views and does not say how to merge them"):
        Two((4, 4), (4, 4)).merge(torch.zeros(6, 5))


# Configs


@pytest.mark.parametrize("kind", sorted({*PROMPTS.names()} - {"several", "coordinator"}))
def test_every_registered_prompt_is_built_from_a_config(kind):
    small = {"border": {"width": 3}, "patch": {"patch_size": 4}, "dga": {"crop_step": 1}}
    own, source = small.get(kind, {}), source_of((10, 12))
    prompt = build_prompt(PromptConfig(kind=kind, **own), source)
    assert prompt.kind == kind and prompt.canvas == (10, 12)
    resize = prompt.resize(source.resize)
    assert resize.size == prompt.image_size
    assert resize == (Resize((5, 6), "squash") if kind in ("padding", "scaled", "dga") else source.resize)
    learned = prompt.learned()
    assert learned is None or torch.equal(learned.pixels, learned.start)
    assert not isinstance(prompt, MaskedPrompt) or (prompt.delta == 0).all()


def test_padding_squashes_or_crops_the_image():
    source = source_of((10, 12))
    cropped = build_prompt(PromptConfig(kind="padding", image_size=6, resize="crop"), source)
    assert cropped.resize(source.resize) == Resize((6, 6), "crop", interpolation="bicubic")
    assert cropped.settings["resize"] == "crop"
    again = PaddingPrompt(**cropped.settings)
    assert again.resize(source.resize) == cropped.resize(source.resize)
    squashed = build_prompt(PromptConfig(kind="padding", image_size=6), source)
    assert "resize" not in squashed.settings  # as saved prompts of earlier versions have it
    with pytest.raises(UserError, match="prompt.resize: unknown value 'corp'; did you mean 'crop'"):
        PromptConfig(kind="padding", resize="corp")


def test_several_is_not_a_kind_to_ask_for():
    with pytest.raises(UserError, match="several is what prompt.views makes"):
        build_prompt(PromptConfig(kind="several"), source_of((10, 12)))


@pytest.mark.parametrize(
    "kind, own, words",
    [
        ("padding", {"image_size": 11}, ["prompt.image_size", "11x11", "10x12"]),
        ("border", {"width": 6}, ["prompt.width", "6", "10x12"]),
        ("patch", {"patch_size": 11}, ["prompt.patch_size", "11", "10x12"]),
        ("patch", {"patch_size": 4, "patch_position": [7, 0]}, ["4", "[7, 0]", "10x12"]),
    ],
)
def test_what_does_not_fit_the_canvas_is_refused_by_name(kind, own, words):
    with pytest.raises(UserError) as error:
        build_prompt(PromptConfig(kind=kind, **own), source_of((10, 12)))
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    "kind, key, owners",
    [
        ("padding", "width", "border"),
        ("none", "image_size", "dga, padding, scaled"),
        ("full", "patch_size", "patch, smm"),
        ("padding", "clip", "border, full, low_rank, patch"),
    ],
)
def test_a_key_of_another_prompt_is_refused_with_its_owner(kind, key, owners):
    with pytest.raises(
        UserError, match=f"'prompt.{key}'; {key} is a key of {owners}; prompt.kind is '{kind}'"
    ):
        PromptConfig(kind=kind, **{key: 3})


@pytest.mark.parametrize("kind", ["smm", "low_rank"])
def test_images_of_the_canvas_may_be_squashed(kind):
    source = source_of((16, 24))
    plain, squashed = (
        build_prompt(PromptConfig(kind=kind, squash=squash), source) for squash in (False, True)
    )
    assert "squash" not in plain.settings and plain.resize(source.resize) == source.resize
    again = PROMPTS.get(kind)(**squashed.settings)
    assert again.resize(source.resize) == Resize((16, 24), rule="squash", interpolation="bilinear")


def test_without_a_prompt_images_may_be_squashed():
    own = Resize((8, 8), rule="crop", interpolation="bicubic")
    assert NoPrompt((8, 8)).resize(own) == own and "squash" not in NoPrompt((8, 8)).settings
    squashed = NoPrompt((8, 8), squash=True)
    assert squashed.resize(own) == Resize((8, 8), rule="squash", interpolation="bilinear")
    assert NoPrompt(**squashed.settings).resize(own) == squashed.resize(own)  # as a saved one is built
