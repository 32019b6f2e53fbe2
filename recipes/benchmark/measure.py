"""Seconds of things that take turns, seconds by phase, and peak memory. Knows nothing of models."""

from __future__ import annotations

import ctypes
import gc
import re
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def now(device: torch.device) -> float:
    """Return the seconds of a clock once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@dataclass(frozen=True)
class Times:
    """Seconds of several candidates, one a round; figures of one round were taken side by side.

    Args:
        seconds: Name to what the clock on the wall says.
        processor: The same of this process's processor time; None where it was not taken.
    """

    seconds: dict[str, list[float]]
    processor: Times | None = None

    @property
    def rounds(self) -> int:
        return len(next(iter(self.seconds.values())))

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, over: str) -> float:
        """Return the median over the rounds of one candidate's seconds over another's in the same round."""
        pairs = zip(self.seconds[name], self.seconds[over], strict=True)
        return statistics.median(one / other for one, other in pairs)

    def spread(self, name: str, over: str) -> list[float]:
        """Return the lowest and the highest of the ratios whose median ``ratio`` is."""
        pairs = zip(self.seconds[name], self.seconds[over], strict=True)
        ratios = sorted(one / other for one, other in pairs)
        return [ratios[0], ratios[-1]]


def alternate(
    candidates: dict[str, Callable[[], Any]],
    device: torch.device,
    seconds: float,
    least: int = 3,
    warm_up: bool = True,
    settle: bool = False,
    before_round: Callable[[], None] = lambda: None,
    after_round: Callable[[], None] = lambda: None,
) -> Times:
    """Run candidates in turns, so that whatever else the machine does falls on all of them alike.

    Every second round goes backwards.

    Args:
        candidates: Name to what is timed.
        device: Waited for before and after each.
        seconds: No round begins that would probably end after so many.
        least: Rounds that are run all the same.
        warm_up: Run each once before, untimed.
        settle: Run a candidate untimed each time before it is timed: as in a loop of its own, it finds memory and
            caches as it left them itself.
        before_round: Called before each round, untimed.
        after_round: Called after each round, untimed.
    """
    if warm_up:
        for run in candidates.values():
            run()
    found: dict[str, list[float]] = {name: [] for name in candidates}
    processor: dict[str, list[float]] = {name: [] for name in candidates}
    begin, rounds = time.perf_counter(), 0
    while rounds < least or (time.perf_counter() - begin) * (rounds + 1) / rounds <= seconds:
        before_round()
        names = list(candidates)
        for name in names[:: -1 if rounds % 2 else 1]:
            if settle:
                candidates[name]()
            start, worked = now(device), time.process_time()
            candidates[name]()
            found[name].append(now(device) - start)
            processor[name].append(time.process_time() - worked)
        after_round()
        rounds += 1
    return Times(found, Times(processor))


class Phases:
    """Seconds by phase, each second in one phase: an inner phase stops the outer one's clock."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._since = 0.0

    @contextmanager
    def __call__(self, phase: str, wait: bool = True) -> Iterator[None]:
        """Time a phase; without ``wait`` only what holds up this process, while the device works on."""
        self._switch(wait)
        self._open.append(phase)
        try:
            yield
        finally:
            self._switch(wait)
            self._open.pop()

    def _switch(self, wait: bool) -> None:
        moment = now(self.device) if wait else time.perf_counter()
        if self._open:
            phase = self._open[-1]
            self.seconds[phase] = self.seconds.get(phase, 0.0) + moment - self._since
        self._since = moment

    def lap(self) -> dict[str, float]:
        """Return the seconds since the last call, and begin anew."""
        lap, self.seconds = self.seconds, {}
        return lap


def peak_memory(run: Callable[[], Any], device: torch.device) -> int | None:
    """Return the bytes that a call takes at its peak beyond those in use before it: of the accelerator, or of
    this process; None where the system does not tell."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system, so that it counts again
        _CLEAR.write_text("5")  # the peak falls to what is in use now
        before = _status("VmRSS")
    except (OSError, AttributeError):
        return None
    run()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    return int(re.search(rf"{name}:\s+(\d+) kB", _STATUS.read_text())[1]) * 1024
