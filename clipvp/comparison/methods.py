"""Methods by name as dotted keys, and those that a comparison takes where none are named."""

from __future__ import annotations

from typing import Any

from ..config.parse import flat_sections, read_yaml
from ..presets import find_method

# Where none are named: what nothing trains, what is solved or trained on features computed once, and the best with a
# prompt. Those that do not fit a source are left out.
DEFAULT_METHODS = (
    "class_means",
    "linear_probe",
    "zero_shot",
    "zero_shot_ensemble",
    "tip_adapter",
    "tip_adapter_f",
    "lp_plus_plus",
    "task_res",
    "zs_lp",
    "blm_plus",
    "prompt_linear",
    "rvp",
)


def read_method(name: str) -> dict[str, Any]:
    """Return the dotted keys and values of a method, by its name or its file.

    Raises:
        UserError: There is none, or its file cannot be read.
    """
    return flat_sections(read_yaml(find_method(name)))
