"""``Preprocessing`` from the preprocessing settings of timm and transformers."""

from __future__ import annotations

from ..images import Resize
from ..registry import UserError
from .base import Preprocessing

_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


def timm_preprocessing(config: dict) -> Preprocessing:
    """Return the preprocessing of a timm data config (input_size, interpolation, mean, std, crop_pct, crop_mode)."""
    rule = "squash" if config.get("crop_mode") == "squash" else "crop"
    interpolation = config["interpolation"] if config["interpolation"] in _RESAMPLE.values() else "bicubic"
    resize = Resize(tuple(config["input_size"][1:]), rule, config["crop_pct"], interpolation)
    return Preprocessing(resize, tuple(config["mean"]), tuple(config["std"]))


def hf_preprocessing(config: dict) -> Preprocessing:
    """Return the preprocessing of a transformers image processor, given as the dict of its settings.

    Raises:
        UserError: The settings cannot be expressed as resizing, centre crop and normalisation.
    """
    size, crop = config.get("size") or {}, config.get("crop_size") or {}
    interpolation = _RESAMPLE.get(int(config.get("resample", 2)), "bicubic")
    short = size.get("shortest_edge")
    crop_share = config.get("crop_pct")  # ConvNeXt and PoolFormer
    if str(config.get("image_processor_type")).startswith("Levit"):
        crop_share = 224 / 256  # in its code, not in its settings
    if config.get("do_center_crop") and crop:
        target = (crop["height"], crop["width"])
        crop_share = crop_share or min(target) / (short or min(size["height"], size["width"]))
        if crop_share > 1:
            raise UserError(
                f"the image processor crops {target[0]}x{target[1]} out of a smaller image, {size}"
            )
        resize = Resize(target, "crop" if short else "squash", crop_share, interpolation, "down")
    elif short:
        cropped = crop_share and short < 384  # ConvNeXt's rule
        resize = Resize(
            (short, short),
            "crop" if cropped else "squash",
            crop_share if cropped else 1.0,
            interpolation,
            "down",
        )
    elif "height" in size:
        resize = Resize((size["height"], size["width"]), "squash", 1.0, interpolation)
    else:
        raise UserError(f"the image processor's size {size} has an unknown format")
    mean, std = [0.0] * 3, [1.0] * 3
    if config.get("do_normalize"):
        mean, std = (
            [value] if isinstance(value, (int, float)) else value  # one for all channels
            for value in (config["image_mean"], config["image_std"])
        )
        if config.get("include_top"):  # EfficientNet divides twice
            std = [value * value for value in std]
    factor = 255 * config["rescale_factor"] if config.get("do_rescale", True) else 255.0
    offset = 1.0 if config.get("rescale_offset") else 0.0
    return Preprocessing(resize, tuple((m + offset) / factor for m in mean), tuple(s / factor for s in std))
