"""clipvp: visual prompting with label mapping for frozen vision models."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers and editors see; the test of the names compares it with _HOMES
    from .build import build_classifier as build_classifier
    from .comparison.compare import Comparison as Comparison
    from .comparison.compare import compare as compare
    from .config.schema import RunConfig as RunConfig
    from .data.task import Task as Task
    from .data.task import load_task as load_task
    from .model import PromptedClassifier as PromptedClassifier
    from .registry import UserError as UserError
    from .scoring.scores import EvalResult as EvalResult
    from .scoring.scores import evaluate as evaluate
    from .search.space import SweepConfig as SweepConfig
    from .search.sweep import sweep as sweep
    from .sources.base import Source as Source
    from .sources.load import load_source as load_source
    from .training.fit import FitResult as FitResult
    from .training.fit import fit as fit

_HOMES = {
    "RunConfig": "config.schema",
    "Task": "data.task",
    "load_task": "data.task",
    "EvalResult": "scoring.scores",
    "evaluate": "scoring.scores",
    "PromptedClassifier": "model",
    "build_classifier": "build",
    "UserError": "registry",
    "Source": "sources.base",
    "load_source": "sources.load",
    "FitResult": "training.fit",
    "fit": "training.fit",
    "Comparison": "comparison.compare",
    "compare": "comparison.compare",
    "SweepConfig": "search.space",
    "sweep": "search.sweep",
}
_RENAMED: dict[str, str] = {}  # old public names and the new ones; an old one works, and warns
__all__ = sorted(_HOMES)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # torch and the model libraries load at the first use of a name, so that --help is instant
    if new := _RENAMED.get(name):
        import_module(".registry", __name__).warn_renamed(f"clipvp.{name}", f"clipvp.{new}")
        return __getattr__(new)
    if name not in _HOMES:
        raise AttributeError(f"module 'clipvp' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return __all__
