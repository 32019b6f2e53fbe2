"""What the finished runs say: which to pick by validation, how it differs from the others, and what to do next."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..data.task import CARVED
from ..results.compare import tested_score, train_seconds
from ..results.correct import Correct, read_correct
from ..results.tables import signed
from ..scoring import significance
from .same_images import SameImages

_ALPHA = 0.05


@dataclass(frozen=True)
class Run:
    """A finished run.

    Args:
        results: The content of results.json.
        folder: Its folder.
        right: Which images it had right; None for a run of an earlier version.
    """

    results: dict[str, Any]
    folder: Path
    right: Correct | None

    @classmethod
    def read(cls, results: dict[str, Any], folder: Path) -> Run:
        return cls(results, folder, read_correct(folder))

    @property
    def seed(self) -> int:
        return self.results["seed"]

    @property
    def tested(self) -> str:
        """The key of the test score that counts."""
        return tested_score(self.results)

    def accuracy(self, key: str) -> float | None:
        return self.results["metrics"].get(key, {}).get("acc1")

    @property
    def on_features(self) -> bool:
        """Whether what the source gives was computed once."""
        return "features" in self.results["seconds"]

    @property
    def val_is_shared(self) -> bool:
        """Whether runs of other seeds validate on the same images: the task's own, all of them."""
        data = self.results["data"]
        return data.get("val_from") not in (None, "none", CARVED) and data.get("shots") is None

    @property
    def seconds(self) -> float:
        """Seconds to train."""
        return train_seconds(self.results)


Cells = dict[str, list[Run]]  # by the name of a cell, its runs


@dataclass(frozen=True)
class Verdict:
    """What the cells of one group say, which learn and are tested on the same images.

    Args:
        group: The settings that tell it from other groups; empty where there is one.
        cells: The names of its cells.
        pick: The cell to use, by validation; None where nothing validates.
        run: The run of it that validates best.
        pairs: The pick against each other cell, by test accuracy.
        sentence: What to do.
    """

    group: str
    cells: list[str]
    pick: str | None = None
    run: Run | None = None
    pairs: list[dict[str, Any]] = field(default_factory=list)
    sentence: str = ""


def check_splits(group: str, cells: Cells) -> None:
    """Raise ``UserError`` where runs of one seed learned from other images, or runs were tested on other images."""
    images = SameImages(group)
    for runs in cells.values():
        for run in runs:
            images.check(run.seed, run.folder, run.results["split_hash"], run.right and run.right.test_hash)


def matrix(runs: Sequence[Run], seeds: Sequence[int], key: str | None = None) -> np.ndarray | None:
    """Return which images runs had right, bool (seeds, images); None where that is not known of the same images."""
    by_seed = {run.seed: run for run in runs}
    found = [by_seed[seed] for seed in seeds]
    rows = [run.right and run.right.scores.get(key or run.tested) for run in found]
    if any(row is None for row in rows) or len({len(row) for row in rows}) > 1:
        return None
    if key is None and len({run.right.test_hash for run in found if run.right}) > 1:
        return None
    return np.stack(rows)


def interval(runs: Sequence[Run]) -> significance.Interval | None:
    """Return the 95 % interval of a cell's test accuracy, None where a single seed is all that is known."""
    right = matrix(runs, [run.seed for run in runs])
    values = [run.accuracy(run.tested) for run in runs]
    if right is not None and len(runs) > 1 and right.shape[1] > 1:
        found = significance.over_seeds_and_images(right)
    elif right is not None:
        found = significance.bootstrap_over_images(right)
    elif len(runs) > 1:
        found = significance.over_seeds(values)
    else:
        return None
    return found._replace(low=max(found.low, 0.0), high=min(found.high, 1.0))


def difference(first: Sequence[Run], second: Sequence[Run]) -> dict[str, Any]:
    """Return how two cells differ on test, first minus second, over the seeds that both have.

    Returns:
        ``mean``, ``low`` and ``high`` of the interval named ``how``, ``p`` by the test named ``test``, and all
        intervals by name; None where there is nothing to tell from.
    """
    seeds = [run.seed for run in first if run.seed in {other.seed for other in second}]
    by_seed = [{run.seed: run for run in runs} for runs in (first, second)]
    values = [
        by_seed[0][s].accuracy(by_seed[0][s].tested) - by_seed[1][s].accuracy(by_seed[1][s].tested)
        for s in seeds
    ]
    found: dict[str, Any] = {"seeds": seeds, "mean": float(np.mean(values)) if seeds else None}
    right = [matrix(runs, seeds) for runs in (first, second)] if seeds else [None, None]
    main, test, more = None, None, []
    if (
        all(part is not None for part in right)
        and right[0].shape == right[1].shape
        and _same_test(by_seed, seeds)
    ):
        both = right[0].astype(float) - right[1]
        more.append(significance.bootstrap_over_images(both))
        if len(seeds) > 1:
            main, test = significance.over_seeds_and_images(both), significance.T_BOTH
        else:
            p = significance.mcnemar(right[0][0], right[1][0])
            main, test = more[0]._replace(p=p), significance.MCNEMAR
    if len(seeds) > 1:
        more.append(significance.over_seeds(values))
        if main is None:
            main, test = more[-1], significance.T_SEEDS
    if len(seeds) > 4:
        more.append(significance.bootstrap_over_seeds(values))
    names = ("low", "high", "p", "how")
    found |= {name: getattr(main, name) if main else None for name in names} | {"test": test}
    every = [main, *(one for one in more if one.how != main.how)] if main else more
    found["intervals"] = {one.how: [one.low, one.high] for one in every}
    return found


def _same_test(by_seed: Sequence[dict[int, Run]], seeds: Sequence[int]) -> bool:
    return len({runs[seed].right.test_hash for runs in by_seed for seed in seeds if runs[seed].right}) == 1


def validation(runs: Sequence[Run]) -> float | None:
    """Return the mean of the best validation accuracies; None where a run has none."""
    values = [run.accuracy("val.best") for run in runs]
    return None if not values or None in values else float(np.mean(values))


def choose(cells: Cells) -> str | None:
    """Return the cell to use, by validation; None where nothing validates.

    That is the best on features computed once, unless one that trains through the network validates better by more than
    one standard error of the paired difference: training through the network costs hundreds of times as much. Of equals
    the quicker is taken. Cells with fewer seeds than others do not take part, as long as some have all.
    """
    most = max((len(runs) for runs in cells.values()), default=0)
    scores = {name: validation(runs) for name, runs in cells.items() if len(runs) == most}
    scores = {name: score for name, score in scores.items() if score is not None}
    if not scores:
        return None

    def best(names: list[str]) -> str:
        return min(names, key=lambda name: (-scores[name], np.mean([run.seconds for run in cells[name]])))

    first = best(list(scores))
    cheap = [name for name in scores if all(run.on_features for run in cells[name])]
    if first in cheap or not cheap:
        return first
    other = best(cheap)
    return other if scores[first] - scores[other] <= standard_error(cells[first], cells[other]) else first


def standard_error(first: Sequence[Run], second: Sequence[Run]) -> float:
    """Return the standard error of two cells' difference in validation, over the validation images.

    Images that validate in all seeds count once, with their mean over the seeds; else those of each seed count.
    """
    shared = all(run.val_is_shared for run in (*first, *second))
    ours, theirs = ({run.seed: run for run in runs} for runs in (first, second))
    parts = []
    for seed in ours.keys() & theirs.keys():
        rows = [run.right and run.right.scores.get("val.best") for run in (ours[seed], theirs[seed])]
        if all(row is not None for row in rows) and len(rows[0]) == len(rows[1]):
            parts.append(rows[0].astype(float) - rows[1])
    if parts:
        same = shared and len({len(part) for part in parts}) == 1
        values = np.mean(parts, axis=0) if same else np.concatenate(parts)
        return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else 0.0
    values = [(run.accuracy("val.best") or 0.0, run.results["metrics"]["val.best"]["n"]) for run in first]
    variance = float(np.mean([p * (1 - p) / max(n, 1) for p, n in values])) if values else 0.0
    return math.sqrt(2 * variance / (1 if shared else len(values)))


def judge(group: str, cells: Cells) -> Verdict:
    """Return what the cells of one group say."""
    check_splits(group, cells)
    pick = choose(cells)
    if pick is None:
        why = "nothing is picked: no run has validation images (train.protocol: paper, or data.val: 0)"
        return Verdict(group, list(cells), sentence=why if cells else "no run is finished")
    run = max(cells[pick], key=lambda run: (run.accuracy("val.best") or 0.0, -run.seed))
    pairs = [{"cell": name, **difference(cells[pick], runs)} for name, runs in cells.items() if name != pick]
    known = [pair for pair in pairs if pair["p"] is not None]
    for pair, corrected in zip(
        known, significance.holm([pair["p"] for pair in known] or [1.0]), strict=False
    ):
        pair["p_holm"] = corrected
    return Verdict(group, list(cells), pick, run, pairs, _sentence(pick, cells, pairs))


def _sentence(pick: str, cells: Cells, pairs: list[dict[str, Any]]) -> str:
    """Return one sentence to act on."""
    runs = cells[pick]
    found = interval(runs)
    accuracy = np.mean([run.accuracy(run.tested) for run in runs])
    within = f" ({100 * found.low:.1f} to {100 * found.high:.1f})" if found else ""
    start = f"use {pick}: {100 * accuracy:.1f} %{within} of the test images, {_seconds(runs)} to train"
    others = [pair for pair in pairs if pair["mean"] is not None]
    dear = [pair for pair in others if not all(run.on_features for run in cells[pair["cell"]])]
    if all(run.on_features for run in runs) and dear:
        other = max(dear, key=lambda pair: validation(cells[pair["cell"]]) or 0.0)
        return f"{start}; {_against(other, 'the best method that trains through the network, ')}"
    if others:
        other = max(others, key=lambda pair: validation(cells[pair["cell"]]) or 0.0)
        return f"{start}; {_against(other, 'the next, ')}"
    return start


def _against(pair: dict[str, Any], what: str) -> str:
    """Return how the pick stands to another cell."""
    gap = signed(pair["mean"])
    if pair["low"] is None:
        return f"it differs by {gap} points from {what}{pair['cell']}, and one seed does not tell more"
    ends = f"{gap} points, {signed(pair['low'])} to {signed(pair['high'])}"
    if pair["low"] <= 0 <= pair["high"]:
        return f"it is level with {what}{pair['cell']}, within the interval ({ends})"
    side = "above" if pair["mean"] > 0 else "below"
    return f"it is {side} {what}{pair['cell']} ({ends})"


def _seconds(runs: Sequence[Run]) -> str:
    seconds = float(np.mean([run.seconds for run in runs]))
    return f"{seconds:.1f} seconds" if seconds < 10 else f"{seconds:.0f} seconds"
