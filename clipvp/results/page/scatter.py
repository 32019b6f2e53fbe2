"""Charts of many runs: accuracy against a cost with the Pareto front, and by training images a class."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..compare import learned_numbers, tested_score, train_seconds
from ..plots.comparison import pareto_front
from ..tables import COMPARISON_COLUMNS, SHOTS
from . import curves
from .read import Run


class Cell(NamedTuple):
    """Runs that differ in their seed alone: their name, their look, and their places on the page."""

    name: str
    look: str
    places: list[int]


class Mark(NamedTuple):
    """The mean of a cell and the points of its runs: what the page says of it, its look, its runs, and the places."""

    text: str
    look: str
    places: list[int]
    mean: tuple[float, float]
    dots: list[tuple[float, float]]


class Scatter(NamedTuple):
    """A chart of ``curves.WIDTH`` x ``curves.HEIGHT``: marks, lines of points, and the ticks of both axes."""

    title: str
    x_name: str
    marks: list[Mark]
    lines: list[tuple[str, list[int], list[tuple[float, float]]]]
    y_ticks: list[tuple[float, str]]
    x_ticks: list[tuple[float, str]]


def cells_of(runs: Sequence[Run]) -> list[Cell]:
    """Return the runs grouped by their settings without seed and folder, in the order in which they come."""
    groups: dict[str, list[int]] = {}
    for place, run in enumerate(runs):
        settings = {k: v for k, v in run.results["config"].items() if k not in ("seed", "output")}
        key = json.dumps([settings, run.results.get("method")], sort_keys=True, default=str)
        groups.setdefault(key, []).append(place)
    return [
        Cell(_name([runs[place].name for place in places]), curves.look(index), places)
        for index, places in enumerate(groups.values())
    ]


def _name(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    common = os.path.commonprefix(list(names)).rstrip("0123456789").removesuffix("seed").rstrip("/-_ ")
    return common or f"{names[0]} and {len(names) - 1} more"


def accuracy(run: Run) -> float | None:
    """Return the test accuracy of the prompt that a run keeps."""
    return run.results["metrics"].get(tested_score(run.results), {}).get("acc1")


def cost_charts(runs: Sequence[Run], cells: Sequence[Cell]) -> list[Scatter]:
    """Return accuracy against trainable numbers and against seconds, where there are several cells."""
    found = []
    for key, cost in (("numbers", learned_numbers), ("train_seconds", train_seconds)):
        values = {place: (cost(run.results), accuracy(run)) for place, run in enumerate(runs)}
        known = {place: pair for place, pair in values.items() if None not in pair}
        own = [cell for cell in cells if known.keys() & set(cell.places)]
        if len(own) > 1:
            found.append(_cost_chart(COMPARISON_COLUMNS[key], own, known))
    return found


def _cost_chart(name: str, cells: Sequence[Cell], known: dict[int, tuple[float, float]]) -> Scatter:
    least = min((x for x, _ in known.values() if x > 0), default=1.0)
    logs = {place: math.log10(x if x > 0 else least / 10) for place, (x, _) in known.items()}
    first, last = math.floor(min(logs.values())), math.ceil(max(logs.values()))
    zero = any(x <= 0 for x, _ in known.values())
    ticks = [
        (power, f"{10**power:,}" if power >= 0 else f"{10.0**power:g}") for power in range(first, last + 1)
    ]
    if len(ticks) > 7:
        ticks = ticks[::2]
    if zero:
        at = math.log10(least / 10)
        ticks = [(at, "0"), *(tick for tick in ticks if tick[0] > at + 0.3)]
        first = min(first, math.floor(at))
    y_of, y_ticks = _heights([y for _, y in known.values()])
    x_of = _widths(first, last)
    marks, means = [], []
    for cell in cells:
        places = [place for place in cell.places if place in known]
        mean = tuple(
            statistics.fmean(part) for part in zip(*((logs[p], known[p][1]) for p in places), strict=True)
        )
        means.append(mean)
        dots = [(x_of(logs[place]), y_of(known[place][1])) for place in places]
        text = f"{cell.name}: {100 * mean[1]:.1f} %"
        marks.append(Mark(text, cell.look, cell.places, (x_of(mean[0]), y_of(mean[1])), dots))
    corners: list[tuple[float, float]] = []
    for place in pareto_front(means):
        x, y = marks[place].mean
        corners += ([(x, corners[-1][1])] if corners else []) + [(x, y)]
    ticks_x = [(x_of(at), text) for at, text in ticks]
    return Scatter(f"Accuracy against {name}", name, marks, [("front", [], corners)], y_ticks, ticks_x)


def shots_chart(runs: Sequence[Run], cells: Sequence[Cell]) -> Scatter | None:
    """Return accuracy by training images a class, where runs have several numbers of them; else None."""
    groups: dict[str, list[tuple[int, Cell]]] = {}
    for cell in cells:
        run = runs[cell.places[0]]
        shots = (run.results["config"].get("data") or {}).get("shots")
        if shots is not None and any(accuracy(runs[place]) is not None for place in cell.places):
            data = {k: v for k, v in run.results["config"]["data"].items() if k != "shots"}
            rest = {k: v for k, v in run.results["config"].items() if k not in ("seed", "output", "data")}
            groups.setdefault(json.dumps([data, rest], sort_keys=True, default=str), []).append((shots, cell))
    lines = [sorted(own, key=lambda one: one[0]) for own in groups.values() if len(own) > 1]
    if not lines:
        return None
    counts = sorted({shots for own in lines for shots, _ in own})
    values = [accuracy(runs[p]) for own in lines for _, cell in own for p in cell.places]
    y_of, y_ticks = _heights([value for value in values if value is not None])
    x_of = _widths(math.log2(counts[0]), math.log2(counts[-1]))
    marks, drawn = [], []
    for own in lines:
        points, places = [], []
        for shots, cell in own:
            found = [accuracy(runs[place]) for place in cell.places]
            known = [value for value in found if value is not None]
            x, mean = x_of(math.log2(shots)), statistics.fmean(known)
            points.append((x, y_of(mean)))
            places += cell.places
            text = f"{cell.name}: {100 * mean:.1f} %"
            marks.append(Mark(text, own[0][1].look, cell.places, points[-1], [(x, y_of(v)) for v in known]))
        drawn.append((own[0][1].look, places, points))
    x_ticks = [(x_of(math.log2(count)), str(count)) for count in counts]
    return Scatter(f"Accuracy by {SHOTS}", SHOTS, marks, drawn, y_ticks, x_ticks)


def _heights(values: Sequence[float]) -> tuple[Callable[[float], float], list[tuple[float, str]]]:
    ticks = curves.nice_ticks(min(values), max(values))
    low, high = ticks[0], ticks[-1]

    def y_of(value: float) -> float:
        share = (value - low) / (high - low)
        return round(curves.HEIGHT - curves.BOTTOM - (curves.HEIGHT - curves.TOP - curves.BOTTOM) * share, 1)

    return y_of, [(y_of(tick), f"{100 * tick:.4g} %") for tick in ticks]


def _widths(first: float, last: float) -> Callable[[float], float]:
    def x_of(value: float) -> float:
        share = (value - first) / (last - first) if last > first else 0.5
        return round(curves.LEFT + 8 + (curves.WIDTH - curves.LEFT - curves.RIGHT - 24) * share, 1)

    return x_of


def looks_of(count: int, cells: Sequence[Cell]) -> list[str]:
    """Return the look of each run: that of its cell."""
    looks: list[Any] = [""] * count
    for cell in cells:
        for place in cell.places:
            looks[place] = cell.look
    return looks
