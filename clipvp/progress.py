"""Progress bars and lines while a run works, and the time of each phase."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterable, Iterator

from tqdm import tqdm
from tqdm.auto import tqdm as bar_of_place  # in a notebook one of its own

_REFRESH = 0.5  # seconds between two reads of values that are on the device
_FEW_EPOCHS, _EPOCH_SECONDS = 50, 1.0  # of more epochs, lines come at least so far apart
_SAY_AFTER = 5.0  # seconds of a phase after which a line says how long it takes, where no bar does


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
        self._said: set[str] = set()
        self._epoch_said = float("-inf")

    def line(self, text: str) -> None:
        if self.shown:
            tqdm.write(text)

    def epoch(self, text: str, epochs: int, last: bool) -> None:
        """Print the line of an epoch; of many quick ones about one a second, and the last."""
        now = time.monotonic()
        if last or epochs <= _FEW_EPOCHS or now - self._epoch_said >= _EPOCH_SECONDS:
            self._epoch_said = now
            self.line(text)

    def bar(self, total: int, phase: str, done: int = 0) -> Bar:
        return Bar(total, phase, self.shown, done, say=self._say)

    def _say(self, phase: str, text: str) -> None:
        """Print how long a phase takes, once for all epochs."""
        if (kind := re.sub(r"\d+", "", phase)) not in self._said:
            self._said.add(kind)
            self.line(f"{phase}: {text}")

    def watch(self, total: int, phase: str) -> Callable[[Iterable], Iterator]:
        """Return a wrapper of batches (images, labels) that shows a bar over ``total`` images."""

        def watched(batches: Iterable) -> Iterator:
            with self.bar(total, phase) as bar:
                for images, labels in batches:
                    yield images, labels
                    bar.advance(len(labels))

        return watched


class Estimate:
    """One line that says how long a run takes, before its first epoch is over.

    Args:
        progress: Prints it.
        steps: Steps an epoch.
        epochs: Epochs of the run.
    """

    def __init__(self, progress: Progress, steps: int, epochs: int):
        self.progress, self.steps, self.epochs = progress, steps, epochs
        self.said, self._start, self._from = epochs == 1, 0.0, 0

    def begin(self, step: int) -> None:
        """Note the start of an epoch's steps, the first of them ``step``."""
        self._start, self._from = time.monotonic(), step

    def step(self, step: int, epochs_left: int) -> None:
        """Note that ``step`` steps of an epoch are done; ``epochs_left`` with this one are not."""
        spent, done = time.monotonic() - self._start, step - self._from
        if self.said or step == self.steps or spent < _SAY_AFTER or done < 2:
            return
        self.said = True
        epoch = spent / done * self.steps
        left = epoch * epochs_left - spent
        self.progress.line(
            f"about {duration(epoch)} of steps an epoch, {duration(left)} for the {epochs_left} to come"
        )


def duration(seconds: float) -> str:
    """Return a time for people.

    >>> duration(7.6), duration(200), duration(9000)
    ('8 s', '3 min', '2.5 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


class Bar:
    """The bar of one phase: how much is done, how fast, and values that are computed only as often as they are shown.

    Args:
        total: How much there is to do, in ``unit``.
        phase: The text before the bar.
        shown: Whether to show it, on a terminal.
        done: How much was done before.
        unit: What is counted.
        say: Called with phase and text after some seconds, where there is no bar.
    """

    def __init__(
        self,
        total: int,
        phase: str,
        shown: bool,
        done: int = 0,
        unit: str = "img",
        say: Callable[[str, str], None] | None = None,
    ):
        self._say, self._start, self._phase = say, time.monotonic(), phase
        self._total, self._before, self._done = total, done, done
        # disable=None: no bar where the output is neither a terminal nor a notebook
        self._bar = bar_of_place(
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

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def advance(self, count: int, values: Callable[[], dict[str, float]] | None = None) -> None:
        """Count what was done; ``values`` is called at most twice a second, since it may wait for the device."""
        if values is not None and not self._bar.disable and time.perf_counter() >= self._next:
            self._next = time.perf_counter() + _REFRESH
            self._bar.set_postfix({name: f"{value:.3f}" for name, value in values().items()}, refresh=False)
        self._bar.update(count)
        self._done += count
        spent, done = time.monotonic() - self._start, self._done - self._before
        if (
            self._say is not None
            and self._bar.disable
            and spent > _SAY_AFTER
            and 0 < self._done < self._total
        ):
            left = spent / done * (self._total - self._done) if done else 0
            self._say(self._phase, f"{100 * self._done // self._total} %, about {duration(left)} to go")
            self._say = None
