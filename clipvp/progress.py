"""What a person sees while a run works, and where its time went."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator

from tqdm import tqdm

_REFRESH = 0.5  # seconds between two looks at values that live on the device


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
        shown: False on all processes but the main one, and where nobody wants to see anything.
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
    """One phase's bar: images done, images a second, and values asked for only as often as they are shown."""

    def __init__(self, total: int, phase: str, shown: bool, done: int = 0):
        # disable=None: no bar where the output is no terminal
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=phase,
            unit="img",
            leave=False,
            disable=None if shown else True,
            dynamic_ncols=True,
        )
        self._next = time.perf_counter() + _REFRESH

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()

    def advance(self, images: int, values: Callable[[], dict[str, float]] | None = None) -> None:
        """Count images; ``values`` is called at most twice a second, since it may wait for the device."""
        if values is not None and not self._bar.disable and time.perf_counter() >= self._next:
            self._next = time.perf_counter() + _REFRESH
            self._bar.set_postfix({name: f"{value:.3f}" for name, value in values().items()}, refresh=False)
        self._bar.update(images)
