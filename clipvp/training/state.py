"""Where a run is, beside the tensors that train."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class State:
    """Where a run is, ready for JSON.

    Args:
        epoch: Epochs finished.
        step: Steps taken in the current epoch.
        row: What is known of the current epoch's line in the metrics.
        history: One row a finished epoch.
        best: Epoch and scores of the best validation so far.
        best_on_test: Epoch and scores of the best test, where every epoch is tested; it selects nothing.
        seconds: Seconds by phase before this process started.
        queries: Images that the source was asked about so far, by phase; an image under V views counts V times.
    """

    epoch: int = 0
    step: int = 0
    row: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    best_on_test: dict[str, Any] | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    queries: dict[str, int] = field(default_factory=dict)

    def waited(self, patience: int | None) -> bool:
        """Return whether so many epochs, or more, were finished since the best validation."""
        return patience is not None and self.best is not None and self.epoch - self.best["epoch"] >= patience

    def check(self, steps: int) -> None:
        """Raise ``ValueError`` where this is not the state of a run with so many steps an epoch."""
        whole = type(self.epoch) is int and type(self.step) is int and 0 <= self.step <= steps
        rows = isinstance(self.history, list) and all(isinstance(row, dict) for row in self.history)
        if not (whole and rows and self.epoch == len(self.history) and isinstance(self.row, dict)):
            raise ValueError(f"epoch {self.epoch!r}, step {self.step!r} and its lines do not fit together")
        for best in (self.best, self.best_on_test):
            if best is not None and not (isinstance(best, dict) and {"epoch", "acc1"} <= best.keys()):
                raise ValueError(f"{best!r} is not a score of an epoch")
        if not isinstance(self.seconds, dict) or not all(
            isinstance(spent, (int, float)) for spent in self.seconds.values()
        ):
            raise ValueError("the seconds by phase are not numbers")
        if not isinstance(self.queries, dict) or not all(
            type(count) is int and count >= 0 for count in self.queries.values()
        ):
            raise ValueError("the queries by phase are not whole numbers")
