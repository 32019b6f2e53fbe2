"""The end of a run: its results as data, and as text for a terminal."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tabulate import tabulate

from ..config.schema import RunConfig
from ..config.values import settings_of
from ..cpu import processor_name
from ..progress import Clock
from ..sources.origin import public_name
from .tables import (
    EPOCH_COLUMNS,
    MOST_LINKS,
    SAVED_PROMPTS,
    SCORE_COLUMNS,
    mapping_rows,
    mapping_table,
    percent,
    queries_text,
    scores_table,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

    from ..data.batches import Batches
    from ..data.task import Task
    from ..model import PromptedClassifier
    from ..scoring.scores import EvalResult

_PACKAGES = ("clipvp", "torch", "timm", "transformers", "open_clip_torch", "datasets", "accelerate", "numpy")
_METHODS = {True: "visual prompt", False: "trained weights"}  # by whether the source is frozen
_EMPTY = {"acc1": None, "acc5": None, "mean_per_class_recall": None, "n": 0}
# The folders of a local path, after the scheme of a source if there is one. The address of a web page does not match.
_FOLDERS = re.compile(r"^(\w+:)?(?:/(?!/)|~[^/]*/|\.{1,2}/(?=.*/)).*?([^/]+)/*$")


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of the packages that results depend on."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def git_commit() -> str | None:
    """Return the commit of the checkout that this code runs from, marked if files differ from it; None if unknown."""
    folder = str(Path(__file__).parent)
    command = ["git", "-C", folder, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def peak_memory(device: torch.device) -> int | None:
    """Return the most bytes in use so far, of the accelerator or else of this process; None on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def build_results(
    config: RunConfig,
    classifier: PromptedClassifier,
    task: Task,
    data: dict[str, Batches],
    best: dict[str, Any] | None,
    test: dict[str, EvalResult],
    clock: Clock,
    accelerator: Accelerator,
) -> dict[str, Any]:
    """Return the content of results.json; accuracies are 0..1, null where they do not apply."""
    source, mapping = classifier.source, classifier.mapping
    kept = "last" if best is None else "best_val"
    table = mapping_rows(mapping.links(MOST_LINKS), source.labels.names, classifier.class_names)
    accuracies = test[kept].per_class() if test else [None] * len(table)
    for row, accuracy in zip(table, accuracies, strict=True):
        row["acc1"] = accuracy
    on_gpu = accelerator.device.type == "cuda"
    return {
        "task": task.name,
        "method": _METHODS[classifier.source_is_frozen],
        "source": {
            "name": source.name,
            "revision": source.revision,
            "fingerprint": source.fingerprint,
            "canvas": list(source.canvas),
            "precision": source.precision,
        },
        "weights": {"kind": source.weights.kind, **source.weights.settings},
        "prompt": {"kind": classifier.prompt.kind, **classifier.prompt.settings},
        "mapping": {"kind": mapping.kind, **mapping.settings},
        "encodes_per_image": classifier.prompt.views,
        "seed": config.seed,
        "num_train": len(data["train"]),
        "num_val": len(data["val"]) if "val" in data else 0,
        "num_test": len(data["test"]) if "test" in data else 0,
        "num_classes": len(classifier.class_names),
        "skipped_images": {split: len(batches.skipped) for split, batches in data.items()},
        "split_hash": task.split_hash,
        "identity": task.identity,
        "protocol": config.train.protocol,
        "saved_prompt": kept,
        "metrics": {
            **{
                f"test.{name}": test[name].to_dict() if name in test else dict(_EMPTY)
                for name in ("last", "best_val")
            },
            **({"test.average": test["average"].to_dict()} if "average" in test else {}),
            "val.best": {key: best[key] for key in _EMPTY} if best else dict(_EMPTY),
        },
        "best_epoch": best["epoch"] if best else None,
        "mapping_table": table,
        "seconds": {phase: round(seconds, 3) for phase, seconds in clock.seconds.items()},
        "run_info": {
            "versions": versions(),
            "git_commit": git_commit(),
            "device": str(accelerator.device),
            "device_name": torch.cuda.get_device_name() if on_gpu else processor_name(),
            "world_size": accelerator.num_processes,
            "peak_memory_bytes": peak_memory(accelerator.device),
            "trainable_parameters": classifier.num_trainable(),
            "fitted_numbers": mapping.num_fitted(),
        },
        "data": task.describe(),
        "config": settings_of(config),
    }


def saved_results(results: dict[str, Any]) -> dict[str, Any]:
    """Return what a saved prompt tells of its run: nothing of the machine, and no path on it."""
    keys = ("task", "seed", "num_train", "num_val", "num_test", "num_classes", "split_hash", "protocol")
    kept = {key: results[key] for key in (*keys, "saved_prompt", "metrics", "best_epoch")}
    kept |= {key: results.get(key) for key in ("identity", "queries")}
    config = {key: dict(value) for key, value in results["config"].items() if isinstance(value, dict)}
    config["data"]["name"] = results["task"]
    config["source"]["name"] = public_name(config["source"]["name"])
    for key in ("folder", "cache_dir"):
        config["data"].pop(key, None)
    templates = config["mapping"].get("templates")
    if isinstance(templates, str) and "{}" not in templates:  # the name of a set, or a file
        config["mapping"]["templates"] = Path(templates).name
    per_class = [row["acc1"] for row in results["mapping_table"]]
    return {
        **kept,
        "per_class": per_class,
        "config": _without_folders(config),
        "versions": results["run_info"]["versions"],
    }


def _without_folders(value: Any) -> Any:
    """Return a value of a config with only the last part of each absolute path, and of those that start with . or ~."""
    if isinstance(value, dict):
        return {key: _without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_folders(inner) for inner in value]
    return _FOLDERS.sub(r"\1\2", value) if isinstance(value, str) else value


def epoch_line(row: dict[str, Any], epochs: int) -> str:
    """Return one epoch's numbers in one line."""
    parts = [f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}", f"loss {row['train_loss']:.3f}"]
    parts.append(f"train {percent(row['train_acc1'])}")
    parts += [f"{name} {percent(row[f'{name}_acc1'])}" for name in ("val", "test") if f"{name}_acc1" in row]
    if "mapping_changed" in row:
        parts.append(f"{row['mapping_changed']} {EPOCH_COLUMNS['mapping_changed']}")
    return "  ".join([*parts, f"{sum(row['seconds'].values()):.1f} s"])


def summary(results: dict[str, Any], output: Path, most: int = 40) -> str:
    """Return the end of a run for a person: the mapping, the accuracies, the time, and where the files are.

    Args:
        results: The content of results.json.
        output: The run's folder.
        most: Classes in the mapping table.
    """
    table, left = results["mapping_table"][:most], max(0, len(results["mapping_table"]) - most)
    scores = tabulate(
        scores_table(results["metrics"]),
        headers=["", *SCORE_COLUMNS.values()],
        colalign=("left", *["right"] * len(SCORE_COLUMNS)),
        disable_numparse=True,
    )
    seconds = results["seconds"]
    time_line = ", ".join(f"{phase} {spent:.1f} s" for phase, spent in seconds.items())
    best = f"best validation at epoch {results['best_epoch']}" if results["best_epoch"] else ""
    saved = SAVED_PROMPTS.get(results["saved_prompt"])
    skipped = sum(results["skipped_images"].values())
    encodes = results.get("encodes_per_image", 1)
    sections = [
        [mapping_table(table), f"... and {left} more classes in results.json" if left else ""],
        [scores],
        [
            "; ".join(part for part in (best, f"prompt/ holds {saved}" if saved else "") if part),
            f"each image is encoded {encodes} times" if encodes > 1 else "",
            f"{skipped} unreadable images were left out" if skipped else "",
            queries_text(results["queries"]) if "queries" in results else "",
            f"time {sum(seconds.values()):.1f} s: {time_line}",
            f"run  {output}",
        ],
    ]
    return "\n\n".join("\n".join(line for line in section if line) for section in sections)
