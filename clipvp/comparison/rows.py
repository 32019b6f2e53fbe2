"""The rows of a comparison's table: scores, intervals, how each differs from the pick, and what it costs."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..artifact.format import WEIGHTS
from ..results.compare import learned_numbers, summarise
from ..results.folder import PROMPT
from .judge import Cells, Run, Verdict, interval


def make_rows(cells: Cells, verdict: Verdict) -> list[dict[str, Any]]:
    """Return one row a cell, ready for JSON; the pick is marked, and the others have their difference to it."""
    pairs = {pair["cell"]: pair for pair in verdict.pairs}
    rows = summarise({name: [run.results for run in runs] for name, runs in cells.items()})
    for row in rows:
        runs, pair = cells[row["cell"]], pairs.get(row["cell"])
        found = interval(runs)
        row |= {
            "group": verdict.group,
            "pick": row["cell"] == verdict.pick,
            "tested": runs[0].tested,
            "interval": {"low": found.low, "high": found.high, "how": found.how} if found else None,
            "minus_pick": None,
            "numbers": max(learned_numbers(run.results) or 0 for run in runs),
            "train_seconds": float(np.mean([run.seconds for run in runs])),
            "on_features": all(run.on_features for run in runs),
            "bytes": max((size for size in map(_bytes, runs) if size is not None), default=None),
            "settings": _settings(runs[0]),
        }
        if pair is not None and pair["mean"] is not None:
            ends = (pair["high"], pair["low"])  # of the pick minus this one
            low, high = (None if end is None else -end for end in ends)
            row["minus_pick"] = {
                "mean": -pair["mean"],
                "low": low,
                "high": high,
                "how": pair["how"],
                "p": pair["p"],
                "test": pair["test"],
                "p_holm": pair.get("p_holm"),
            }
    return rows


def _bytes(run: Run) -> int | None:
    path = run.folder / PROMPT / WEIGHTS
    return path.stat().st_size if path.is_file() else None


def _settings(run: Run) -> dict[str, Any]:
    results = run.results
    return {
        "task": results["task"],
        "source": results["source"]["name"],
        "canvas": results["source"]["canvas"],
        "shots": results["data"].get("shots"),
        "num_train": results["num_train"],
        "num_val": results["num_val"],
        "num_test": results["num_test"],
    }
