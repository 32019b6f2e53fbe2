"""Networks of one input channel see the grey image; those of other counts are refused."""

import numpy as np
import pytest
import torch
from conftest import photo
from tiny_models import PATCH, SIZE, VISION, _clip_tokenizer, _spread
from torch import nn

from clipvp import UserError, load_source
from clipvp.images import Resize
from clipvp.sources.base import PixelsInParts, Preprocessing
from clipvp.sources.channels import for_rgb

MEAN, STD = 0.4, 0.3


def save_timm(folder, channels: int = 1):
    import timm
    from timm.models import save_for_hf

    model = _spread(timm.create_model("test_efficientnet", num_classes=5, in_chans=channels), 0)
    statistics = {"mean": [MEAN] * channels, "std": [STD] * channels, "input_size": (channels, SIZE, SIZE)}
    model.pretrained_cfg.update(statistics)
    save_for_hf(model, folder, safe_serialization=True, model_args={"num_classes": 5, "in_chans": channels})
    return f"timm:local-dir:{folder}", model


def save_hf(folder, channels: int = 1):
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    config = ViTConfig(**VISION, image_size=SIZE, patch_size=PATCH, num_labels=5, num_channels=channels)
    model = _spread(ViTForImageClassification(config), 0)
    model.save_pretrained(folder)
    statistics = {"image_mean": [MEAN] * channels, "image_std": [STD] * channels}
    ViTImageProcessor(size={"height": SIZE, "width": SIZE}, **statistics).save_pretrained(folder)
    return f"hf:{folder}", lambda pixels: model(pixel_values=pixels).logits


SAVERS = {"timm": save_timm, "hf": save_hf}


@pytest.mark.parametrize("library", SAVERS)
def test_a_network_of_one_channel_is_fed_with_the_grey_image(library, tmp_path):
    name, network = SAVERS[library](tmp_path)
    source = load_source(name)
    image = photo(SIZE, SIZE)
    pixels = (torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255).requires_grad_()
    red, green, blue = pixels.detach().unbind(1)
    grey = (0.299 * red + 0.587 * green + 0.114 * blue)[:, None]
    rounded = torch.from_numpy(np.array(image.convert("L")))[None, None] / 255  # Pillow rounds to whole steps
    assert (grey - rounded).abs().max() <= 1 / 255
    logits = source(pixels)
    with torch.no_grad():
        expected = network((grey - MEAN) / STD)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
        assert (logits - network((rounded - MEAN) / STD)).abs().max() < 0.05 * expected.std()
    logits.logsumexp(1).sum().backward()
    gradient = pixels.grad / torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    torch.testing.assert_close(gradient, gradient[:, :1].expand_as(gradient), rtol=1e-4, atol=1e-7)
    assert gradient.abs().sum() > 0


def test_a_grey_picture_gives_what_the_network_gives_for_it(tmp_path):
    name, network = save_timm(tmp_path)
    source = load_source(name)
    picture = photo(SIZE, SIZE).convert("L")
    pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)[None] / 255
    grey = torch.from_numpy(np.array(picture))[None, None] / 255
    with torch.no_grad():
        torch.testing.assert_close(source(pixels), network((grey - MEAN) / STD), rtol=1e-4, atol=1e-5)


def test_a_grey_clip_sees_the_grey_image(tmp_path):
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    tokenizer, vocabulary = _clip_tokenizer(77)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"eos_token_id": vocabulary["<|endoftext|>"], "bos_token_id": vocabulary["<|startoftext|>"]}
    config = CLIPConfig(
        text_config={**size, **ends, "vocab_size": len(vocabulary)},
        vision_config={**size, "image_size": SIZE, "patch_size": PATCH, "num_channels": 1},
        projection_dim=8,
    )
    model = _spread(CLIPModel(config), 0)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    CLIPImageProcessor(size=SIZE, crop_size=SIZE, image_mean=[MEAN], image_std=[STD]).save_pretrained(
        tmp_path
    )
    source = load_source(f"hf:{tmp_path}", class_names=["cat", "dog"])
    grey = torch.rand(2, 1, SIZE, SIZE)
    with torch.no_grad():
        expected = model.get_image_features(pixel_values=(grey - MEAN) / STD).pooler_output
        torch.testing.assert_close(source.encode(grey.expand(-1, 3, -1, -1)), expected, rtol=1e-4, atol=1e-5)


def test_a_shared_border_of_a_grey_network_is_computed_as_plain_pixels_are(tmp_path):
    source = load_source(save_timm(tmp_path)[0], canvas=64)
    surroundings, images = torch.rand(1, 3, 64, 64), torch.rand(4, 3, 16, 16)
    pixels = surroundings.repeat(4, 1, 1, 1)
    pixels[:, :, 24:40, 24:40] = images
    with torch.no_grad():
        found = source(PixelsInParts(surroundings, images, (24, 24, 40, 40), (surroundings,)))
        torch.testing.assert_close(found, source(pixels), rtol=1e-4, atol=1e-5)
    assert source._split_network.reason is None


@pytest.mark.parametrize("library", SAVERS)
@pytest.mark.parametrize("channels", [2, 4])
def test_other_numbers_of_channels_are_one_line(library, channels, tmp_path):
    name, _ = SAVERS[library](tmp_path, channels)
    with pytest.raises(
        UserError, match=f"takes images of {channels} channels; a source has 3, or 1"
    ) as error:
        load_source(name)
    assert "\n" not in str(error.value) and name in str(error.value)


def test_a_network_of_three_channels_is_left_as_it_is():
    network = nn.Conv2d(3, 5, 4)
    assert for_rgb(network, 3, "test") is network


# Mean and std


def test_one_value_of_mean_and_std_holds_for_all_channels():
    one = Preprocessing(Resize((4, 4)), (0.5,), (0.25,))
    assert one == Preprocessing(Resize((4, 4)), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


@pytest.mark.parametrize(
    "mean, std, words",
    [
        ((0.5, 0.5), (0.5,), "mean has 2 values"),
        ((0.5,), (0.5,) * 4, "std has 4 values"),
        ((), (0.5,), "mean has 0 values"),
        ((0.5,), (0.0,), "numbers above 0"),
        ((0.5,), (0.5, -1, 0.5), "numbers above 0"),
        ((0.5,), (float("nan"),), "numbers above 0"),
    ],
)
def test_a_wrong_mean_or_std_is_one_line(mean, std, words):
    with pytest.raises(UserError, match=words):
        Preprocessing(Resize((4, 4)), mean, std)


@pytest.mark.parametrize("value", [0.25, [0.25]])
def test_an_image_processor_may_give_one_value(value):
    from clipvp.sources.preprocessing import hf_preprocessing

    settings = {"size": {"height": 8, "width": 8}, "do_normalize": True, "rescale_factor": 1 / 255}
    found = hf_preprocessing({**settings, "image_mean": value, "image_std": value})
    assert found.mean == found.std == (0.25, 0.25, 0.25)
