"""When a mapping by counts is fitted, and from which images: keys and rules that several mappings share."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.schema import NEVER, MappingConfig
from ..registry import UserError, check_choice, check_positive


@dataclass
class RefreshConfig(MappingConfig):
    """A mapping that is fitted to counts.

    Args:
        refresh: Epochs between two refreshes: 1 is every epoch, never is once, before training.
        statistics: exact (a counting pass over the training set) or running (counts of the training steps).
    """

    refresh: int | str = 1
    statistics: str = "exact"

    def __post_init__(self):
        super().__post_init__()
        check_choice("mapping.statistics", self.statistics, ["exact", "running"])
        if isinstance(self.refresh, str):
            if self.refresh != NEVER:
                raise UserError(
                    f"mapping.refresh: {self.refresh!r} is neither a number of epochs nor {NEVER!r}"
                )
        else:
            check_positive("mapping.refresh", self.refresh)


class Refreshed:
    """A mapping that is fitted before the first epoch, and then every ``refresh`` epochs.

    ``refresh`` is a number of epochs or "never"; ``statistics`` is exact (a pass before each refresh) or running (after
    the first pass, what the training steps gathered since the last refresh).
    """

    refresh: int | str
    running: bool

    def set_refresh(self, refresh: int | str, statistics: str) -> None:
        self.refresh, self.running = refresh, statistics == "running" and refresh != NEVER

    def due(self, epoch: int) -> bool:
        return epoch == 0 or (self.refresh != NEVER and epoch % self.refresh == 0)
