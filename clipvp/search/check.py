"""What a sweep cannot do is told before torch or Optuna loads."""

from __future__ import annotations

import os
from pathlib import Path

from ..config.schema import RunConfig
from ..registry import UserError
from ..results.folder import CONFIG, RESULTS
from .space import Space, SweepConfig


def check_sweep(config: RunConfig, settings: SweepConfig) -> Space:
    """Return what a sweep tries.

    Args:
        config: What all trials share.
        settings: The search.

    Raises:
        UserError: The sweep cannot be as its config says.
    """
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise UserError("a worker of a sweep is one process; start the command as often as you want workers")
    if config.train.protocol != "val":
        raise UserError(
            f"train.protocol: {config.train.protocol} has no validation, by which a sweep chooses"
        )
    if config.overwrite:
        raise UserError("overwrite: a sweep goes on with what its folder holds; choose another --output")
    for name in (CONFIG, RESULTS):
        if (Path(config.output) / name).exists():
            raise UserError(f"output: {config.output!r} holds a run; choose another folder")
    space = Space(settings.space, config)
    if settings.sampler == "grid":
        space.grid()
    return space
