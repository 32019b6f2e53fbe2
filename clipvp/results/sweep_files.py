"""The files of a sweep, and reading what it found."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..registry import UserError
from .tables import percent

SWEEP, BEST = "sweep.json", "best.yaml"


def read_sweep(folder: str | Path) -> dict[str, Any]:
    """Return the content of sweep.json.

    Raises:
        UserError: The folder holds no finished sweep.
    """
    path = Path(folder) / SWEEP
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{str(folder)!r} holds no finished sweep: {SWEEP} is missing") from None
    except ValueError as error:
        raise UserError(f"{str(path)!r} is damaged: {error}") from error


def trials_table(trials: Sequence[dict[str, Any]], keys: Iterable[str], most: int = 5) -> str:
    """Return the best trials for a terminal.

    Args:
        trials: Rows of sweep.json.
        keys: Of the space.
        most: How many are shown.
    """
    from tabulate import tabulate

    keys = list(keys)
    done = [row for row in trials if row["state"] == "complete"]
    done.sort(key=lambda row: (-row["val_acc1"], row["number"]))
    rows = [
        [row["number"], percent(row["val_acc1"]), row["epochs"], *(row["params"].get(key) for key in keys)]
        for row in done[:most]
    ]
    return tabulate(rows, ["trial", "validation", "epochs", *keys], missingval="-")
