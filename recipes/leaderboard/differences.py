"""Differences of two methods of a table, with their intervals."""

from __future__ import annotations

from typing import Any

import numpy as np

from clipvp.registry import UserError
from clipvp.results.correct import unpack
from clipvp.scoring.significance import Interval, holm, over_seeds, over_seeds_and_images

Runs = dict[int, dict[str, Any]]  # what is kept of a run, by its seed
Cells = dict[str, Runs]  # of one source and task, by method
_ALPHA = 0.05


def difference(runs: Runs, others: Runs, score: str) -> Interval | None:
    """Return the mean difference over the seeds that both have, as a share, with its 95 % interval.

    The interval is over seeds and images where both kept which images are right, else over seeds. None for fewer than
    two seeds.

    Raises:
        UserError: A seed was not trained and tested on the same images.
    """
    seeds = sorted(runs.keys() & others.keys())
    for seed in seeds:
        if runs[seed]["split"] != others[seed]["split"]:
            raise UserError(
                f"seed {seed}: two runs of one table are of different images, so they are not paired"
            )
    if len(seeds) < 2:
        return None
    both = [table[seed] for table in (runs, others) for seed in seeds]
    if all("right" in run for run in both) and len({run["test"] for run in both}) == 1:
        ours, theirs = (
            np.array([unpack(table[seed]["right"]) for seed in seeds]) for table in (runs, others)
        )
        return over_seeds_and_images(ours.astype(float) - theirs)
    return over_seeds([runs[seed]["scores"][score] - others[seed]["scores"][score] for seed in seeds])


def paired(runs: Runs, others: Runs, score: str) -> str:
    """Return the mean difference over the seeds that both have, in points, with its interval (see ``difference``)."""
    if (found := difference(runs, others, score)) is not None:
        mean, low, high = (100 * value for value in found[:3])
        return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"
    one = [
        100 * (runs[seed]["scores"][score] - others[seed]["scores"][score])
        for seed in runs.keys() & others.keys()
    ]
    return f"{one[0]:+.1f}" if one else "-"


def not_zero(cells: Cells, reference: str, score: str) -> set[str]:
    """Return the methods that differ from the reference after Holm's correction over all that are compared with it."""
    others = cells.get(reference, {})
    found = {name: difference(runs, others, score) for name, runs in cells.items() if name != reference}
    known = {name: interval.p for name, interval in found.items() if interval is not None}
    corrected = holm(list(known.values())) if known else []
    return {name for name, p in zip(known, corrected, strict=True) if p < _ALPHA}
