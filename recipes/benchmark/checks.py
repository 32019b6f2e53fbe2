"""What a config asks for that cannot be measured here, told before anything is."""

from __future__ import annotations

import torch

from clipvp.registry import UserError, nearest

from .config import BY_ARCHITECTURE, BY_FRAME, BenchmarkConfig


def check_parts(config: BenchmarkConfig, device: torch.device) -> None:
    """Check the architectures of a config, what fits their canvas, and what this device can do.

    Raises:
        UserError: An architecture is not timm's, nothing fits its canvas, or the device cannot be profiled.
    """
    if "profile" in config.parts and device.type != "cpu":
        raise UserError(f"only: profile is measured on a CPU, not on {device.type}; give --device cpu")
    if not set(config.parts) & set(BY_ARCHITECTURE):
        return
    import timm

    for name in config.architectures:
        if not timm.is_model(name):
            raise UserError(f"architectures: timm has no {name!r}; {nearest(name, timm.list_models())}")
    for part in set(config.parts) & set(BY_ARCHITECTURE):
        for name in config.architectures:
            _check_fits(config, part, name, config.canvas or _side(name))


def _check_fits(config: BenchmarkConfig, part: str, name: str, side: int | None) -> None:
    if side is None or any(size <= side for size in config.image_sizes):
        return
    what, allowed = f"image_sizes {config.image_sizes}", f"a size <= {side}"
    if part in BY_FRAME:
        if any(2 * width < side for width in config.frames):
            return
        what, allowed = f"{what} and frames {config.frames}", f"{allowed} or a frame < {side / 2:g}"
    raise UserError(
        f"{what}: none fits the canvas of {name}, {side} pixels, for the part {part}; give {allowed}"
    )


def _side(name: str) -> int | None:
    """Return the side in pixels of an architecture's own canvas; None where timm does not say."""
    import timm

    known = timm.get_pretrained_cfg(name.partition(".")[0])
    return None if known is None else min(known.input_size[1:])
