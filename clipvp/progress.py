"""Progress bars and lines while a run works, and the time of each phase."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator

from tqdm import tqdm

_REFRESH = 0.5  # seconds between two reads of values that are on the device


class Clock:
    """Seconds by phase, over the whole run and since the last ``lap``."""

    def __init__(self, seconds: dict[str, float] | None = None):
        self.seconds: dict[str, float] = dict(seconds or {})
        self._lap: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            for table in (self.seconds, self._lap):
                table[phase] = table.get(phase, 0.0) + spent

    def lap(self) -> dict[str, float]:
        """Return the seconds by phase since the last call, and begin anew."""
        lap, self._lap = self._lap, {}
        return {phase: round(seconds, 3) for phase, seconds in lap.items()}


class Progress:
    """Bars on a terminal, none elsewhere; lines in both.

    Args:
        shown: Whether this process shows anything; only the main process does.
    """

    def __init__(self, shown: bool):
        self.shown = shown

    def line(self, text: str) -> None:
        if self.shown:
            tqdm.write(text)

    def bar(self, total: int, phase: str, done: int = 0) -> Bar:
        return Bar(total, phase, self.shown, done)

    def watch(self, total: int, phase: str) -> Callable[[Iterable], Iterator]:
        """Return a wrapper of batches (images, labels) that shows a bar over ``total`` images."""

        def watched(batches: Iterable) -> Iterator:
            with self.bar(total, phase) as bar:
                for images, labels in batches:
                    yield images, labels
                    bar.advance(len(labels))

        return watched


class Bar:
    """The bar of one phase: how much is done, how fast, and values that are computed only as often as they are shown.

    Args:
        total: How much there is to do, in ``unit``.
        phase: The text before the bar.
        shown: Whether to show it, on a terminal.
        done: How much was done before.
        unit: What is counted.
    """

    def __init__(self, total: int, phase: str, shown: bool, done: int = 0, unit: str = "img"):
        # disable=None: no bar where the output is not a terminal
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=phase,
            unit=unit,
            leave=False,
            disable=None if shown else True,
            dynamic_ncols=True,
        )
        self._next = time.perf_counter() + _REFRESH

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()

    def advance(self, count: int, values: Callable[[], dict[str, float]] | None = None) -> None:
        """Count what was done; ``values`` is called at most twice a second, since it may wait for the device."""
        if values is not None and not self._bar.disable and time.perf_counter() >= self._next:
            self._next = time.perf_counter() + _REFRESH
            self._bar.set_postfix({name: f"{value:.3f}" for name, value in values().items()}, refresh=False)
        self._bar.update(count)
