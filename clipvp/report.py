"""The end of a run: its results as data, and as a page on the terminal."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from tabulate import tabulate

from .config import RunConfig, to_dict
from .data import Task
from .data.batches import Batches
from .evaluate import EvalResult
from .model import PromptedClassifier
from .progress import Clock

_PACKAGES = ("clipvp", "torch", "timm", "transformers", "open_clip_torch", "datasets", "accelerate", "numpy")
_EMPTY = {"acc1": None, "acc5": None, "mean_per_class_recall": None, "n": 0}


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
    """Return the commit of the checkout that this code runs from, marked where files differ from it."""
    command = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=12",
        "--exclude=*",
    ]
    try:
        return (
            subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
            or None
        )
    except (OSError, subprocess.SubprocessError):
        return None


def peak_memory(device: torch.device) -> int:
    """Return the most bytes in use so far: of the accelerator, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
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
    method: str = "visual prompt",
) -> dict[str, Any]:
    """Return the content of results.json; accuracies are 0..1, null where they do not apply."""
    source, mapping = classifier.source, classifier.mapping
    saved = "best_val" if "best_val" in test else "last"
    table = mapping.describe(source.labels, classifier.class_names)
    for row, accuracy in zip(table, test[saved].per_class(), strict=True):
        row["acc1"] = accuracy
    return {
        "task": task.name,
        "method": method,
        "source": {
            "name": source.name,
            "revision": source.revision,
            "fingerprint": source.fingerprint,
            "canvas": list(source.canvas),
            "precision": source.precision,
        },
        "prompt": {"kind": classifier.prompt.kind, **classifier.prompt.settings},
        "mapping": {"kind": mapping.kind, **mapping.settings},
        "seed": config.seed,
        "num_train": len(data["train"]),
        "num_val": len(data["val"]) if "val" in data else 0,
        "num_test": len(data["test"]),
        "num_classes": len(classifier.class_names),
        "skipped_images": {split: len(batches.skipped) for split, batches in data.items()},
        "split_hash": task.split_hash,
        "protocol": config.train.protocol,
        "saved_prompt": saved,
        "metrics": {
            "test.last": test["last"].to_dict(),
            "test.best_val": test["best_val"].to_dict() if "best_val" in test else dict(_EMPTY),
            "val.best": {key: best[key] for key in _EMPTY} if best else dict(_EMPTY),
        },
        "best_epoch": best["epoch"] if best else None,
        "mapping_table": table,
        "seconds": {phase: round(seconds, 3) for phase, seconds in clock.seconds.items()},
        "run_info": {
            "versions": versions(),
            "git_commit": git_commit(),
            "device": str(accelerator.device),
            "device_name": torch.cuda.get_device_name()
            if accelerator.device.type == "cuda"
            else platform.processor(),
            "world_size": accelerator.num_processes,
            "peak_memory_bytes": peak_memory(accelerator.device),
            "trainable_parameters": classifier.num_trainable(),
        },
        "data": task.describe(),
        "config": to_dict(config),
    }


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def epoch_line(row: dict[str, Any], epochs: int) -> str:
    """Return one epoch's numbers in one line."""
    parts = [f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}", f"loss {row['train_loss']:.3f}"]
    parts.append(f"train {percent(row['train_acc1'])}")
    parts += [f"{name} {percent(row[f'{name}_acc1'])}" for name in ("val", "test") if f"{name}_acc1" in row]
    if "mapping_changed" in row:
        parts.append(f"{row['mapping_changed']} classes remapped")
    return "  ".join([*parts, f"{sum(row['seconds'].values()):.1f} s"])


def summary(results: dict[str, Any], output: Path, most: int = 40) -> str:
    """Return the end of a run for a person: the mapping, the accuracies, the time, and where things are."""
    rows = [
        [row["class"], row["label"], row["count"], percent(row["share"]), percent(row["acc1"])]
        for row in results["mapping_table"][:most]
    ]
    left = len(results["mapping_table"]) - len(rows)
    table = tabulate(
        rows,
        headers=["target class", "source label", "count", "of its images", "test accuracy"],
        colalign=("left", "left", "right", "right", "right"),
        disable_numparse=True,
        maxcolwidths=[32, 60, None, None, None],
    )
    names = {
        "test.last": "test, last prompt",
        "test.best_val": "test, best on validation",
        "val.best": "validation, best",
    }
    scores = [
        [label, percent(m["acc1"]), percent(m["acc5"]), percent(m["mean_per_class_recall"]), m["n"]]
        for label, m in ((label, results["metrics"][name]) for name, label in names.items())
        if m["n"]
    ]
    scores_table = tabulate(
        scores,
        headers=["", "top-1", "top-5", "per class", "images"],
        colalign=("left", *["right"] * 4),
        disable_numparse=True,
    )
    seconds = results["seconds"]
    total = sum(seconds.values())
    time_line = ", ".join(f"{phase} {spent:.1f} s" for phase, spent in seconds.items())
    best = f"best validation at epoch {results['best_epoch']}; " if results["best_epoch"] else ""
    skipped = sum(results["skipped_images"].values())
    lines = [
        table,
        f"... and {left} more classes in results.json" if left else "",
        "",
        scores_table,
        "",
        f"{best}prompt/ holds the {'best' if results['saved_prompt'] == 'best_val' else 'last'} prompt",
        f"{skipped} unreadable images were left out" if skipped else "",
        f"time {total:.1f} s: {time_line}",
        f"run  {output}",
    ]
    return "\n".join(line for index, line in enumerate(lines) if line or index in (2, 4))
