"""Pictures of count matrices: the label mapping, the templates it takes, and the confusion of classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .base import VERMILION, shorten, to_array
from .heat import cell_texts, draw_heat, draw_numbers, draw_outlines, sheet_for

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ...labels.space import LabelSpace


def plot_mapping(
    counts: Any,
    source_index: Any,
    labels: LabelSpace,
    class_names: Sequence[str],
    ax: Axes | None = None,
    max_labels: int = 40,
    max_classes: int = 30,
) -> Figure:
    """Draw which source labels the images of each class are seen as, and which label each class takes.

    Rows are the labels taken, in the order of the classes, then the labels seen most often, then all others
    as one row. Colour is the share of the class's images; the label taken is outlined.

    Args:
        counts: int (S, T), images of class t whose top-1 source label is s.
        source_index: int (T,), the source label of each class; -1 for none.
        labels: The S source labels.
        class_names: T strings.
        ax: Axes to draw into; a new figure when empty.
        max_labels: Rows of single labels at most; the labels taken are always shown.
        max_classes: Columns at most: those whose images agree least with the label taken.

    Returns:
        The figure.
    """
    counts, source_index = _check(counts, source_index, labels, class_names)
    classes, cut = _least_agreed(counts, source_index, max_classes)
    table, taken = counts[:, classes], source_index[classes]
    rows = list(dict.fromkeys(int(label) for label in taken if label >= 0))
    others = table.sum(1)
    others[rows] = 0
    most = np.argsort(-others, kind="stable")[: max(0, max_labels - len(rows))]
    more = [int(label) for label in most if others[label] > 0]
    others[more] = 0
    shown = table[rows + more]
    names = [shorten(labels.names[label], 48 if labels.is_text else 34) for label in rows + more]
    if others.any():
        shown = np.concatenate([shown, (table.sum(0) - shown.sum(0))[None]])
        names.append(f"the other {len(labels) - len(rows + more):,} labels")
    if not names:
        raise ValueError("no class has a source label and no image was counted")

    columns = [shorten(class_names[t], 32) for t in classes]
    sheet = sheet_for(ax, names, columns, cell=(0.42 if len(columns) <= 16 else 0.28, 0.22))
    draw_heat(sheet, _shares(shown, counts.sum(0)[classes]), names, columns)
    draw_numbers(sheet, cell_texts(shown))
    position = {label: row for row, label in enumerate(rows)}
    draw_outlines(sheet, [(position[int(label)], column) for column, label in enumerate(taken) if label >= 0])
    for line in {len(rows), len(rows) + len(more)} - {0, len(names)}:
        sheet.ax.axhline(line - 0.5, color="0.35", linewidth=1)
    sheet.ax.set_ylabel("source label")
    sheet.foot("target class", "")
    agreed = f"{_agreement(counts, source_index):.1%} of all images" if counts.any() else "no images"
    sheet.title(f"Label mapping{cut}: {agreed} are seen as the label taken (outlined)")
    return sheet.figure


def plot_templates(
    counts: Any,
    source_index: Any,
    labels: LabelSpace,
    class_names: Sequence[str],
    ax: Axes | None = None,
    max_templates: int = 100,
    max_classes: int = 30,
) -> Figure:
    """Draw which templates draw the images of each class, and which template each class takes.

    A cell counts the images of a class whose top-1 label is made from a template, with whatever class name:
    a column adds up to all images of the class and shows which wordings fit it; which names it is mistaken
    for is ``plot_mapping``'s matter. The template of the label taken is outlined; in its cell stand the
    images on that very label and those on the template. A dot, and a name after the class's own, tell that
    the label taken holds another class's name.

    Args:
        counts: int (S, T) with S = templates x T, label ``template * T + class``.
        source_index: int (T,), the source label of each class; -1 for none.
        labels: A label space made of text.
        class_names: T strings.
        ax: Axes to draw into; a new figure when empty.
        max_templates: Rows at most: those that most images are seen as, besides those taken.
        max_classes: Columns at most: those whose images agree least with the label taken.

    Returns:
        The figure.

    Raises:
        ValueError: The labels are no text.
    """
    counts, source_index = _check(counts, source_index, labels, class_names)
    if not labels.is_text:
        raise ValueError("plot_templates needs labels made from templates; plot_mapping draws any labels")
    classes, cut = _least_agreed(counts, source_index, max_classes)
    per_template = counts.reshape(len(labels.templates), -1, counts.shape[1]).sum(1)
    used = np.zeros(len(labels.templates), dtype=np.int64)
    for label in source_index[source_index >= 0].tolist():
        used[labels.template_of(label)] += 1
    # Templates that are taken come first, then those that most images are seen as.
    order = np.lexsort((-per_template.sum(1), used == 0))
    rows = np.sort(order[:max_templates])
    if len(rows) < len(used):
        cut += f", {len(rows)} of {len(used)} templates"

    own_name, columns, cells, strangers = list(labels.class_names), [], [], []
    shown = per_template[rows][:, classes]
    text = cell_texts(shown)
    position = {int(template): row for row, template in enumerate(rows)}
    for column, target in enumerate(classes.tolist()):
        label, name = int(source_index[target]), shorten(class_names[target], 24)
        if label >= 0 and (row := position.get(labels.template_of(label))) is not None:
            cells.append((row, column))
            text[row][column] = f"{counts[label, target]}/{shown[row, column]}"
            if labels.class_of(label) != target:
                name += f" ← {shorten(own_name[labels.class_of(label)], 24)}"
                strangers.append((row, column))
        columns.append(name)
    names = [shorten(labels.templates[row], 48) + (f"  ({used[row]})" if used[row] else "") for row in rows]

    both = len(names) > 40
    sheet = sheet_for(ax, names, columns, cell=(0.62 if len(columns) <= 16 else 0.3, 0.175), both=both)
    draw_heat(sheet, _shares(shown, counts.sum(0)[classes]), names, columns, both=both)
    note = "colour: images whose top-1 label is made from the template, with any class name"
    note += "\noutlined: the template of the label taken"
    if draw_numbers(sheet, text):
        note += "; in its cell, images on that very label / on the template"
    draw_outlines(sheet, cells)
    for row, column in strangers:
        sheet.ax.plot(column - 0.4, row, marker="o", markersize=3.2, color=VERMILION, linestyle="none")
    sheet.ax.set_ylabel("template (classes with it)")
    if strangers:
        note += "\ndot and ←: the label taken holds another class's name"
    sheet.foot("target class", note)
    other = sum(labels.class_of(int(label)) != t for t, label in enumerate(source_index) if label >= 0)
    in_use = f"{int((used > 0).sum())} of {len(used)} in use"
    sheet.title(f"Templates{cut}: {in_use}; labels taken that hold another class's name: {other}")
    return sheet.figure


def plot_confusion(
    confusion: Any, class_names: Sequence[str], ax: Axes | None = None, worst: int = 5
) -> Figure:
    """Draw which classes are taken for which.

    Args:
        confusion: int (T, T), images of class [true] predicted as class [predicted].
        class_names: T strings.
        ax: Axes to draw into; a new figure when empty.
        worst: So many of the most frequent confusions are named under the picture.

    Returns:
        The figure; colour is the share of the true class, on a square-root scale so that rare errors show.
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
    shares = _shares(confusion.T, confusion.sum(1)).T
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


def _check(counts, source_index, labels: LabelSpace, class_names) -> tuple[np.ndarray, np.ndarray]:
    counts, source_index = to_array(counts), to_array(source_index)
    if counts.shape != (len(labels), len(class_names)):
        raise ValueError(f"counts are {counts.shape}, not (S, T) = {(len(labels), len(class_names))}")
    if source_index.shape != (len(class_names),) or (source_index >= len(labels)).any():
        raise ValueError(f"source_index must be {len(class_names)} labels below {len(labels)}, one a class")
    return counts, source_index


def _chosen(counts: np.ndarray, source_index: np.ndarray) -> np.ndarray:
    """Return the count (T,) of each class's own label, 0 where it has none."""
    return np.where(source_index >= 0, counts[source_index, np.arange(len(source_index))], 0)


def _agreement(counts: np.ndarray, source_index: np.ndarray) -> float:
    return float(_chosen(counts, source_index).sum() / max(counts.sum(), 1))


def _least_agreed(counts: np.ndarray, source_index: np.ndarray, number: int) -> tuple[np.ndarray, str]:
    """Return the classes to show and how to say that some are left out."""
    total = len(source_index)
    if total <= number:
        return np.arange(total), ""
    images = counts.sum(0)
    disagreed = 1 - np.divide(_chosen(counts, source_index), images, out=np.ones(total), where=images > 0)
    order = np.argsort(-disagreed, kind="stable")[:number]
    return order, f", {number} of {total} classes (those that agree least with their label)"


def _shares(table: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Return counts (R, C) as shares of the totals (C,), 0 where nothing was counted."""
    return table / np.maximum(totals, 1)
