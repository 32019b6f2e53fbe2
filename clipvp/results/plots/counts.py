"""Pictures of counts: the label mapping, the templates of its labels, and the confusion of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..tables import MAPPING_COLUMNS
from .base import VERMILION, shorten, to_array
from .heat import cell_texts, draw_heat, draw_numbers, draw_outlines, sheet_for

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ...labels.space import LabelSpace
    from ...mappings.base import Links
    from ...mappings.statistic import CellSums

_FAINT = 0.5  # strength of the outlines of all links but the first


def plot_mapping(
    counts: CellSums,
    links: Links,
    labels: LabelSpace,
    class_names: Sequence[str],
    ax: Axes | None = None,
    max_labels: int = 40,
    max_classes: int = 30,
) -> Figure:
    """Draw which source labels the images of each class are seen as, and which labels each class takes.

    The rows are the labels that the classes take, in the order of the classes, then the labels with the most images,
    then all other labels together. Colour is the share of the class's images. The labels that a class takes are
    outlined, its first one strongest.

    Args:
        counts: Of images by top-1 source label and class.
        links: The source labels behind each class.
        labels: The S source labels.
        class_names: T strings.
        ax: Axes to draw into; a new figure when None.
        max_labels: Most rows of single labels; the first label of each class is shown in any case.
        max_classes: Most columns: the classes with the smallest share of images on their labels.

    Returns:
        The figure.
    """
    index = _check(counts, links, labels, class_names)
    classes, cut = _least_agreed(counts, index, max_classes)
    first = [int(label) for label in dict.fromkeys(index[classes, 0]) if label >= 0]
    more = [int(label) for label in dict.fromkeys(index[classes, 1:].T.flat) if label >= 0]
    more = [label for label in more if label not in first]
    chosen = {*first, *more[: max(0, max_labels - len(first))]}
    rows = [int(label) for label in dict.fromkeys(index[classes].flat) if label in chosen]

    seen, columns, values = _cells(counts, classes)
    others = np.bincount(seen, values, len(labels))
    others[rows] = 0
    most = np.argsort(-others, kind="stable")[: max(0, max_labels - len(rows))]
    rows += (frequent := [int(label) for label in most if others[label] > 0])
    totals = to_array(counts.by_class())[classes]
    shown = _table(rows, len(classes), seen, columns, values)
    names = [shorten(labels.names[label], 48 if labels.is_text else 34) for label in rows]
    if (rest := totals - shown.sum(0)).any():
        shown = np.concatenate([shown, rest[None]])
        names.append(f"the other {len(labels) - len(rows):,} labels")
    if not names:
        raise ValueError("no class has a source label and no image was counted")

    shown_classes = [shorten(class_names[t], 32) for t in classes]
    sheet = sheet_for(ax, names, shown_classes, cell=(0.42 if len(classes) <= 16 else 0.28, 0.22))
    draw_heat(sheet, shown / np.maximum(totals, 1), names, shown_classes)
    draw_numbers(sheet, cell_texts(shown))
    place = {label: row for row, label in enumerate(rows)}
    for rank, taken in enumerate(index[classes].T):
        cells = [(place[label], column) for column, label in enumerate(taken.tolist()) if label in place]
        draw_outlines(sheet, cells, 1.0 if rank == 0 else _FAINT)
    for line in {len(rows) - len(frequent), len(rows)} - {0, len(names)}:
        sheet.ax.axhline(line - 0.5, color="0.35", linewidth=1)
    sheet.ax.set_ylabel(MAPPING_COLUMNS["label"])
    sheet.foot(MAPPING_COLUMNS["class"], "")
    number = int(counts.by_class().sum())
    agreed = f"{_on_labels(counts, index).sum() / number:.1%} of all images" if number else "no images"
    which = "the label taken" if index.shape[1] == 1 else "a label taken"
    text = f"{agreed} are seen as {which} (outlined)" if (index >= 0).any() else "no class takes a label"
    sheet.title(f"Label mapping{cut}: {text}")
    return sheet.figure


def plot_templates(
    counts: CellSums,
    links: Links,
    labels: LabelSpace,
    class_names: Sequence[str],
    ax: Axes | None = None,
    max_templates: int = 100,
    max_classes: int = 30,
) -> Figure:
    """Draw which templates or descriptions the images of each class are seen as, and which ones each class takes.

    A cell counts the images of a class whose top-1 label is made from a template, with any class name; ``plot_mapping``
    shows the names. The templates of the labels that a class takes are outlined, that of its first label strongest. An
    outlined cell holds two numbers: the images on those very labels, and the images on the template. A dot, and a name
    after that of the class, mark a class whose first label holds another class's name.

    Args:
        counts: Of images by top-1 source label and class.
        links: The source labels behind each class.
        labels: A label space made of text.
        class_names: T strings.
        ax: Axes to draw into; a new figure when None.
        max_templates: Most rows: first the templates that classes take, then those with the most images.
        max_classes: Most columns: the classes with the smallest share of images on their labels.

    Returns:
        The figure.

    Raises:
        ValueError: The labels are not text.
    """
    index = _check(counts, links, labels, class_names)
    if not labels.is_text:
        raise ValueError("plot_templates needs labels made from templates; plot_mapping draws any labels")
    classes, cut = _least_agreed(counts, index, max_classes)
    wording_of, class_of = np.asarray(labels.wording_of), np.asarray(labels.class_of)
    size = len(labels.wordings)
    pairs = {(t, wording_of[label]) for (t, _), label in np.ndenumerate(index) if label >= 0}
    used = np.bincount(np.array([wording for _, wording in pairs], dtype=np.int64), minlength=size)
    images = np.bincount(wording_of, to_array(counts.by_label()), size)
    rows = np.sort(np.lexsort((-images, used == 0))[:max_templates])
    if len(rows) < size:
        cut += f", {len(rows)} of {size:,} templates"

    seen, columns, values = _cells(counts, classes)
    shown = _table(rows, len(classes), wording_of[seen], columns, values)
    text = cell_texts(shown)
    place = {int(wording): row for row, wording in enumerate(rows)}
    on_label = _on_labels(counts, index)
    names, first, taken, others = [], [], {}, []
    for column, target in enumerate(classes.tolist()):
        name = shorten(class_names[target], 24)
        for rank, label in enumerate(index[target].tolist()):
            row = place.get(int(wording_of[label])) if label >= 0 else None
            if row is None:
                continue
            if rank == 0:
                first.append((row, column))
                if class_of[label] != target:
                    name += f" ← {shorten(labels.class_names[class_of[label]], 24)}"
                    others.append((row, column))
            taken[row, column] = taken.get((row, column), 0) + int(on_label[target, rank])
        names.append(name)
    for (row, column), number in taken.items():
        text[row][column] = f"{number}/{shown[row, column]}"
    templates = [
        shorten(labels.wordings[row], 48) + (f"  ({used[row]})" if used[row] else "") for row in rows
    ]

    both = len(templates) > 40
    sheet = sheet_for(ax, templates, names, cell=(0.62 if len(names) <= 16 else 0.3, 0.175), both=both)
    totals = to_array(counts.by_class())[classes]
    draw_heat(sheet, shown / np.maximum(totals, 1), templates, names, both=both)
    note = "colour: images whose top-1 label is made from the template, with any class name"
    note += "\noutlined: the template of the label taken"
    if draw_numbers(sheet, text):
        note += "; in its cell, images on that very label / on the template"
    draw_outlines(sheet, first)
    draw_outlines(sheet, taken.keys() - set(first), _FAINT)
    for row, column in others:
        sheet.ax.plot(column - 0.4, row, marker="o", markersize=3.2, color=VERMILION, linestyle="none")
    sheet.ax.set_ylabel("template (classes with it)")
    if others:
        note += "\ndot and ←: the label taken holds another class's name"
    sheet.foot(MAPPING_COLUMNS["class"], note)
    number = sum(class_of[label] != t for t, label in enumerate(index[:, 0]) if label >= 0)
    in_use = f"{int((used > 0).sum())} of {size:,} in use"
    sheet.title(f"Templates{cut}: {in_use}; labels taken that hold another class's name: {number}")
    return sheet.figure


def plot_confusion(
    confusion: Any, class_names: Sequence[str], ax: Axes | None = None, worst: int = 5
) -> Figure:
    """Draw which classes are predicted for the images of each class.

    Args:
        confusion: int (T, T), images of class [true] predicted as class [predicted].
        class_names: T strings.
        ax: Axes to draw into; a new figure when None.
        worst: Number of the most frequent confusions named below the picture.

    Returns:
        The figure. Colour is the share of the true class; the square-root scale makes rare errors visible.
    """
    confusion = to_array(confusion)
    total = len(class_names)
    if confusion.shape != (total, total):
        raise ValueError(f"confusion is {confusion.shape}, not (T, T) with T = {total} class names")
    named = total <= 60
    names = [shorten(name, 24) for name in class_names] if named else []
    side = (0.42 if total <= 15 else 0.21) if named else 8 / total
    pairs = _worst_pairs(confusion, class_names, worst)
    sheet = sheet_for(ax, names, names, cell=(side, side), size=total, lines=pairs.count("\n") + 2)
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    draw_heat(sheet, shares, names, names, label="share of the true class", aspect="equal")
    if not named:
        sheet.ax.set(xticks=[], yticks=[])
    draw_numbers(sheet, cell_texts(confusion))
    sheet.ax.set_ylabel("true class" if named else f"true class ({total})")
    sheet.foot("predicted class" if named else f"predicted class ({total})", pairs)
    images = int(confusion.sum())
    right = f"{np.trace(confusion) / images:.1%} of {images:,} images right" if images else "no images"
    sheet.title(f"Confusion of {total} class{'es' if total > 1 else ''}: {right}")
    return sheet.figure


def _worst_pairs(confusion: np.ndarray, class_names: Sequence[str], worst: int) -> str:
    errors = np.where(np.eye(len(confusion), dtype=bool), 0, confusion)
    lines = []
    for cell in np.argsort(-errors, axis=None, kind="stable")[:worst].tolist():
        true, predicted = divmod(cell, len(confusion))
        if errors[true, predicted]:
            number, total = int(errors[true, predicted]), int(confusion[true].sum())
            pair = f"{shorten(class_names[true], 24)} → {shorten(class_names[predicted], 24)}"
            lines.append(f"{pair}: {number:,} of {total:,} ({number / total:.0%})")
    return "\n".join(["most frequent confusions, true → predicted", *lines]) if lines else ""


def _check(counts: CellSums, links: Links, labels: LabelSpace, class_names: Sequence[str]) -> np.ndarray:
    """Return the source labels (T, k) of the links; counts and links must fit the labels and the classes."""
    size, index = (len(labels), len(class_names)), to_array(links.index)
    if (counts.num_source, counts.num_target) != size:
        raise ValueError(f"counts are {(counts.num_source, counts.num_target)}, not (S, T) = {size}")
    if index.ndim != 2 or len(index) != size[1] or index.max(initial=-1) >= size[0]:
        raise ValueError(f"links must be {size[1]} rows of labels below {size[0]}, one row a class")
    return index


def _cells(counts: CellSums, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the counted cells of some classes: the source label, the place in ``classes``, and the count of each."""
    places = np.full(counts.num_target, -1)
    places[classes] = np.arange(len(classes))
    labels, targets, values = map(to_array, counts.cells)
    kept = places[targets] >= 0
    return labels[kept], places[targets[kept]], values[kept]


def _table(
    rows: Sequence[int], width: int, keys: np.ndarray, columns: np.ndarray, values: np.ndarray
) -> np.ndarray:
    """Return a table (R, ``width``) of sums: row r sums the values whose key is ``rows[r]``, each in its column."""
    place = {int(key): row for row, key in enumerate(rows)}
    table = np.zeros((len(rows), width), dtype=np.int64)
    for key, column, value in zip(keys.tolist(), columns.tolist(), values.tolist(), strict=True):
        if key in place:
            table[place[key], column] += value
    return table


def _on_labels(counts: CellSums, index: np.ndarray) -> np.ndarray:
    """Return the images (T, k) of each class that are seen as each of its labels; 0 where it has none."""
    labels, classes, values = map(to_array, counts.cells)  # by label and then by class
    cells = labels * counts.num_target + classes
    wanted = index * counts.num_target + np.arange(counts.num_target)[:, None]
    places = np.searchsorted(cells, wanted)
    found = np.append(cells, -1)[places] == wanted
    return np.where(found & (index >= 0), np.append(values, 0)[places], 0)


def _least_agreed(counts: CellSums, index: np.ndarray, number: int) -> tuple[np.ndarray, str]:
    """Return the classes to show, and the words that say which ones they are if some are left out."""
    total = len(index)
    if total <= number:
        return np.arange(total), ""
    if (index < 0).all():
        return np.arange(number), f", the first {number} of {total} classes"
    images = to_array(counts.by_class())
    on_labels = _on_labels(counts, index).sum(1)
    agreed = np.divide(on_labels, images, out=np.ones(total), where=images > 0)
    classes = np.argsort(agreed, kind="stable")[:number]
    return classes, f", {number} of {total} classes (those that agree least with their label)"
