"""What recipes/benchmark.py measured, as pages show it: kept in recipes/results/speed/NAME.json."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from benchmark.config import PARTS, BenchmarkConfig
from benchmark.tables import table

_LEFT_OUT = ("json", "data")  # places of one machine


def benchmark_tables(folder: Path) -> dict[str, str]:
    """Return the tables of all benchmarks that a folder keeps as Markdown, each under ``speed/NAME``."""
    paths = sorted((folder / "speed").glob("*.json"))
    return {
        f"speed/{path.stem}": benchmark_markdown(json.loads(path.read_text(encoding="utf-8")))
        for path in paths
    }


def benchmark_markdown(results: dict[str, Any]) -> str:
    """Return the table of each part that was measured, then the machine and the command."""
    tables = [table(part, results) for part in PARTS if part in results["seconds"]]
    return "\n\n".join([*tables, caption(results)]) + "\n"


def caption(results: dict[str, Any]) -> str:
    """Return where a benchmark was measured, and by which command."""
    device, versions = results["device"], results["versions"]
    threads = "" if device["type"] == "cuda" else f", {device['threads']} CPU threads"
    caches = "".join(f", {level} {size}" for level, size in device.get("caches", {}).items())
    return f"{device['name']}{caches}{threads}, torch {versions['torch']}: `{command(results['config'])}`."


def command(config: dict[str, Any]) -> str:
    """Return the command that measures what a config says: its values that are not the default.

    >>> command({"only": "step", "batch_size": 128, "rounds": 3})
    'python recipes/benchmark.py --only step --batch_size 128'
    """
    words = ["python recipes/benchmark.py"]
    for item in fields(BenchmarkConfig):
        default = item.default if item.default is not MISSING else item.default_factory()
        value = config.get(item.name, default)
        if value != default and item.name not in _LEFT_OUT:
            words.append(f"--{item.name} {_word(value)}")
    return " ".join(words)


def _word(value: Any) -> str:
    if isinstance(value, list):
        return f'"[{",".join(str(each) for each in value)}]"'
    return (
        str(value).lower()
        if isinstance(value, bool)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )
