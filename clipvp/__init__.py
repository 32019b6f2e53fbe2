"""clipvp: visual prompting with label mapping for frozen vision models."""

from __future__ import annotations

from importlib import import_module

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
}
__all__ = sorted(_HOMES)
__version__ = "0.1.0"


def __getattr__(name: str):
    # torch and the model libraries load at the first use of a name, so that --help is instant
    if name not in _HOMES:
        raise AttributeError(f"module 'clipvp' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return __all__
