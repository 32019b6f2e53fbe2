"""Where the time of a step goes, by kind of operation: the steps of ``sharing.py``, profiled on a CPU."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator
from typing import Any

from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from .setting import Setting
from .sharing import cases, steps_of

KINDS = ("convolutions forward", "convolutions backward", "windows copied", "pooling", "everything else")
os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler prints lines at each start and stop
_STEP = "clipvp step"  # the event around a step, so that time in Python between operations counts too
_WINDOWS = ("_Windows", "_WindowsBackward")  # of clipvp/sharing/window.py


def measure_profile(setting: Setting) -> Iterator[dict[str, Any]]:
    """Yield, after each architecture and prompt, the milliseconds of each way's step by kind of operation."""
    rounds = setting.config.rounds
    found: dict[str, dict[str, Any]] = {}
    for name, label, source, prompt in cases(setting):
        steps, _ = steps_of(setting, source, prompt)
        found.setdefault(name, {})[label] = row = _medians(steps, rounds)
        print(
            f"  {name}, {label}: {', '.join(f'{way} {sum(row[way].values()):.0f} ms' for way in row)}",
            flush=True,
        )
        yield {"profile": {"rounds": rounds, "rows": found}}


def _medians(steps: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    for step in steps.values():
        step()  # to warm up
    laps: dict[str, list[dict[str, float]]] = {way: [] for way in steps}
    for _ in range(rounds):
        for way, step in steps.items():
            laps[way].append(milliseconds(step))
    return {
        way: {kind: statistics.median(lap[kind] for lap in each) for kind in KINDS}
        for way, each in laps.items()
    }


def milliseconds(step: Callable[[], Any]) -> dict[str, float]:
    """Return the milliseconds of one call by kind of operation; together they are the whole call."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled, record_function(_STEP):
        step()
    found = dict.fromkeys(KINDS, 0.0)

    def add(event: FunctionEvent) -> None:
        kind = kind_of(event.name)
        if kind is not None:
            found[kind] += event.cpu_time_total / 1e3
            return
        found["everything else"] += event.self_cpu_time_total / 1e3
        for child in event.cpu_children:
            add(child)

    for event in profiled.events():
        if event.name == _STEP:
            add(event)
    return found


def kind_of(name: str) -> str | None:
    """Return the kind of an operation with all that it calls; None where what it calls may be of several kinds."""
    if name == "aten::convolution_backward":
        return "convolutions backward"
    if name.startswith("aten::conv"):
        return "convolutions forward"
    if name in _WINDOWS:
        return "windows copied"
    if name.startswith("aten::") and "pool" in name:
        return "pooling"
    return None
