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

from ..artifact.card import percent
from ..config.schema import RunConfig
from ..config.values import settings_of
from ..data.batches import Batches
from ..data.task import Task
from ..model import PromptedClassifier
from ..progress import Clock
from ..scoring.scores import EvalResult
from ..sources.origin import public_name

_PACKAGES = ("clipvp", "torch", "timm", "transformers", "open_clip_torch", "datasets", "accelerate", "numpy")
VISUAL_PROMPT = "visual prompt"
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
    method: str = VISUAL_PROMPT,
) -> dict[str, Any]:
    """Return the content of results.json; accuracies are 0..1, null where they do not apply."""
    source, mapping = classifier.source, classifier.mapping
    kept = "best_val" if "best_val" in test else "last"
    table = mapping.describe(source.labels, classifier.class_names)
    for row, accuracy in zip(table, test[kept].per_class(), strict=True):
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
        "saved_prompt": kept if method == VISUAL_PROMPT else None,
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
        "config": settings_of(config),
    }


def saved_results(results: dict[str, Any]) -> dict[str, Any]:
    """Return what a saved prompt tells of its run: nothing of the machine, and no path on it."""
    keys = ("task", "seed", "num_train", "num_val", "num_test", "num_classes", "split_hash", "protocol")
    kept = {key: results[key] for key in (*keys, "saved_prompt", "metrics", "best_epoch")}
    config = {key: value for key, value in results["config"].items() if isinstance(value, dict)}
    config["data"] = {**config["data"], "name": results["task"]}
    config["source"] = {**config["source"], "name": public_name(config["source"]["name"])}
    del config["data"]["cache_dir"], config["data"]["folder"]
    templates = config["mapping"]["templates"]
    if (
        isinstance(templates, str) and "{}" not in templates
    ):  # a set's name or a file; the texts stand in the prompt
        config["mapping"] = {**config["mapping"], "templates": Path(templates).name}
    per_class = [row["acc1"] for row in results["mapping_table"]]
    return {**kept, "per_class": per_class, "config": config, "versions": results["run_info"]["versions"]}


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
    prompted = results["method"] == VISUAL_PROMPT
    table, left = results["mapping_table"][:most], max(0, len(results["mapping_table"]) - most)
    columns = {"target class": [row["class"] for row in table]}
    if prompted:  # a baseline's source labels are the classes themselves
        columns["source label"] = [row["label"] for row in table]
        columns["count"] = [row["count"] for row in table]
        columns["of its images"] = [percent(row["share"]) for row in table]
    columns["test accuracy"] = [percent(row["acc1"]) for row in table]
    words = ("target class", "source label")
    mapping_table = tabulate(
        columns,
        headers="keys",
        colalign=["left" if name in words else "right" for name in columns],
        disable_numparse=True,
        maxcolwidths=[{"target class": 32, "source label": 60}.get(name) for name in columns],
        missingval="-",
    )
    what = "prompt" if prompted else "weights"
    names = {
        "test.last": f"test, last {what}",
        "test.best_val": "test, best on validation",
        "val.best": "validation, best",
        "test.best_on_test": "test, best on test",
    }
    scores = [
        [label, percent(m["acc1"]), percent(m["acc5"]), percent(m["mean_per_class_recall"]), m["n"]]
        for name, label in names.items()
        if (m := results["metrics"].get(name)) and m["n"]
    ]
    scores_table = tabulate(
        scores,
        headers=["", "top-1", "top-5", "per class", "images"],
        colalign=("left", *["right"] * 4),
        disable_numparse=True,
    )
    seconds = results["seconds"]
    time_line = ", ".join(f"{phase} {spent:.1f} s" for phase, spent in seconds.items())
    best = f"best validation at epoch {results['best_epoch']}" if results["best_epoch"] else ""
    saved = {"best_val": "prompt/ holds the best prompt", "last": "prompt/ holds the last prompt"}
    skipped = sum(results["skipped_images"].values())
    sections = [
        [mapping_table, f"... and {left} more classes in results.json" if left else ""],
        [scores_table],
        [
            "; ".join(part for part in (best, saved.get(results["saved_prompt"])) if part),
            f"{skipped} unreadable images were left out" if skipped else "",
            f"time {sum(seconds.values()):.1f} s: {time_line}",
            f"run  {output}",
        ],
    ]
    return "\n\n".join("\n".join(line for line in section if line) for section in sections)
