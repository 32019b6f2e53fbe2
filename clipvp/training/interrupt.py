"""Stopping on request: finish the step, save, and exit with a code of its own."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType

_ONE_REQUEST = 1.0  # seconds: a launcher passes on a signal that its processes got too
EXIT_CODE = 75  # "try again later": started again with --resume auto, the run goes on


class Interrupted(Exception):
    """A run was asked to stop and has saved; the message says how to go on."""

    def _render_traceback_(self) -> list[str]:  # what a notebook shows
        return [str(self)]


class StopRequest:
    """A context that notes SIGTERM and SIGINT. A second signal, more than a second after the first, ends the process at
    once."""

    def __init__(self):
        self.signal: str | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._since = signal.Signals(number).name, time.monotonic()
        elif time.monotonic() - self._since > _ONE_REQUEST:
            os._exit(EXIT_CODE)
