"""All parts of a benchmark in turn: what will be done, the tables, and the file."""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import Any

import torch

from clipvp.files import write_json
from clipvp.results.record import git_commit, versions

from .checks import check_parts
from .config import PARTS, BenchmarkConfig
from .epochs import measure_epoch
from .others import measure_assignment, measure_data, measure_text
from .profile import measure_profile
from .quickstart import measure_quickstart
from .setting import Setting
from .sharing import measure_sharing
from .steps import measure_architectures, measure_memory, measure_step
from .tables import table
from .texts import measure_text_bank

MEASURES = {
    "step": measure_step,
    "memory": measure_memory,
    "epoch": measure_epoch,
    "data": measure_data,
    "text": measure_text,
    "assignment": measure_assignment,
    "architectures": measure_architectures,
    "text_bank": measure_text_bank,
    "sharing": measure_sharing,
    "profile": measure_profile,
    "quickstart": measure_quickstart,
}


def run_benchmark(config: BenchmarkConfig) -> dict[str, Any]:
    """Measure the parts that a config names; print a table after each, and renew ``config.json`` after whatever a part
    gives: all it found at its end, or what it has found so far.

    Returns:
        What the file holds: each part under its name, and its figures of note at the top.
    """
    with Setting(config) as setting:
        check_parts(config, setting.device)
        results: dict[str, Any] = {"device": describe(setting.device), "versions": versions()}
        asked = {
            name: value for name, value in vars(config).items() if name != "json"
        }  # a place of this machine
        results |= {"git_commit": git_commit(), "config": asked}
        print(plan(config, results["device"]), flush=True)
        for part in config.parts:
            print(f"\n{part}: {PARTS[part]} ...", flush=True)
            start = time.perf_counter()
            given = MEASURES[part](setting)
            for found in [given] if isinstance(given, dict) else given:
                results |= found
                spent = time.perf_counter() - start
                results.setdefault("seconds", {})[part] = round(spent, 1)
                if config.json:
                    write_json(Path(config.json), results)
            print(f"took {spent:.0f} s\n\n{table(part, results)}", flush=True)
    return results


def plan(config: BenchmarkConfig, device: dict[str, Any]) -> str:
    """Return what will be measured, and for how long, in a few lines."""
    weights = "random weights" if config.random_weights else "its weights"
    image = f"{config.image_size} pixels in" if config.prompt == "padding" else "a border prompt on"
    if config.width is not None:
        image = f"a border of {config.width} pixels on"
    canvas = f"a canvas of {config.canvas or 'its own size'}"
    prompts = len(config.image_sizes) + len(config.frames)
    many = {"architectures": len(config.architectures), "sharing": len(config.architectures) * prompts}
    many |= {"profile": 0, "quickstart": 0}  # these take their rounds, however long
    times = {part: many.get(part, 1) for part in config.parts}
    limit = sum(times.values()) * config.seconds
    return "\n".join(
        [
            f"{device['name']}, {device['threads']} CPU threads",
            f"{config.source} with {weights}, {image} {canvas}, batch {config.batch_size}, {config.precision}",
            f"{', '.join(config.parts)}: {config.seconds:g} s each and {limit:g} s in all, "
            f"or longer where {config.rounds} rounds and a round to warm up take longer",
        ]
    )


def describe(device: torch.device) -> dict[str, Any]:
    """Return what figures of time depend on: the device's type and name, and the CPU's threads and caches."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    found = {"type": device.type, "name": name, "threads": torch.get_num_threads()}
    return found | ({} if device.type == "cuda" else {"caches": _caches()})


def _caches() -> dict[str, str]:
    """Return the sizes of the caches that a core has or shares, by level; none where Linux does not tell."""
    found = {}
    for cache in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = ((cache / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        if kind != "Instruction":
            found[f"L{level}"] = size
    return found


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
        known = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        # One name may stand for several processors.
        return f"{known['model name']}, family {known['cpu family']} model {known['model']}"
    except (OSError, KeyError):
        return platform.processor() or platform.machine()
