"""Pictures over epochs: loss and accuracy, and changes of the label mapping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..tables import EPOCH_COLUMNS, MAPPING_COLUMNS, SCORE_COLUMNS
from .base import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    YELLOW,
    Sheet,
    finite,
    name_axis,
    new_figure,
    shorten,
    text_width,
    title,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ...labels.space import LabelSpace

_ACCURACIES = (("train_acc1", BLUE, "-"), ("val_acc1", VERMILION, "-"), ("test_acc1", "0.25", ":"))


def plot_curves(history: Sequence[Mapping[str, Any]], ax: Axes | None = None) -> Figure:
    """Draw loss and accuracies over epochs, the epochs at which the mapping changed, and the best validation.

    Args:
        history: One row an epoch: ``epoch``, and if known ``train_loss``, ``train_acc1``, ``val_acc1``, ``test_acc1``
            (0..1), ``lr``, and ``mapping_changed``, the number of classes whose source label changed at the epoch's
            refresh. That of epoch 0 is not drawn, since it counts the first labels.
        ax: Axes to draw into, with the loss on a second axis at the right; a new figure of two panels when None.

    Returns:
        The figure.
    """
    if not len(history):
        raise ValueError("history is empty; it needs one row an epoch")
    if ax is None:
        figure = new_figure(8.0, 6.0)
        upper, lower = figure.subplots(2, 1, sharex=True)
        title(figure, f"Training over {len(history)} epoch{'s' if len(history) > 1 else ''}")
    else:
        figure, upper, lower = ax.figure.canvas.figure, ax.twinx(), ax
        lower.set_zorder(upper.get_zorder() + 1)  # draws the legend above the loss
        lower.patch.set_visible(False)
    _draw_loss(upper, history, alone=ax is None)
    _draw_accuracies(lower, history, extra=[] if ax is None else upper.lines, above=ax is None)
    if ax is None:
        _mark_rates(upper, lower, history)
    return figure


def _series(history: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    points = [(row["epoch"], row[key]) for row in history if finite(row.get(key))]
    return [epoch for epoch, _ in points], [float(value) for _, value in points]


def _marker(points: Sequence) -> dict[str, Any]:
    return {"marker": "o" if len(points) <= 30 else "", "markersize": 3.5, "linewidth": 1.6}


def _draw_loss(ax: Axes, history, alone: bool) -> None:
    epochs, values = _series(history, "train_loss")
    colour, name = BLUE if alone else "0.6", EPOCH_COLUMNS["train_loss"]
    ax.plot(epochs, values, color=colour, label=name, **_marker(epochs))
    known = [row for row in history if row.get("train_loss") is not None]
    lost = [row["epoch"] for row in known if not finite(row["train_loss"])]
    ax.set_ylabel(name + (f"\nnot finite from epoch {lost[0]}" if lost else ""))
    if alone:
        ax.grid(color="0.9", linewidth=0.6)
        _legend(ax)


def _draw_accuracies(ax: Axes, history, extra: Sequence, above: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    ax.grid(color="0.9", linewidth=0.6)
    for key, colour, dashes in _ACCURACIES:
        epochs, values = _series(history, key)
        if epochs:
            look = {"color": colour, "linestyle": dashes, **_marker(epochs)}
            ax.plot(epochs, values, label=EPOCH_COLUMNS[key], **look)
    epochs, values = _series(history, "val_acc1")
    if epochs:
        best = int(np.argmax(values))
        text = f"best validation: {values[best]:.1%}, epoch {epochs[best]}"
        look = {"color": VERMILION, "markeredgecolor": "black", "markersize": 13}
        ax.plot(epochs[best], values[best], "*", label=text, **look)
    low, high = ax.get_ylim()
    if high - low < 0.02:
        low, high = low - 0.05, high + 0.05
    moved = _series(history[1:] if history[0]["epoch"] == 0 else history, "mapping_changed")
    moved = [(epoch, number) for epoch, number in zip(*moved, strict=True) if number > 0]
    extra = list(extra)
    if moved:
        low -= 0.2 * (high - low)
        most = max(number for _, number in moved)
        look = {"color": PURPLE, "linewidth": float(np.clip(240 / len(history), 1.2, 5))}
        tops = [0.02 + 0.12 * number / most for _, number in moved]
        ax.vlines([epoch for epoch, _ in moved], 0, tops, transform=ax.get_xaxis_transform(), **look)
        extra.append(Line2D([], [], label=f"{EPOCH_COLUMNS['mapping_changed']} (most: {most:.0f})", **look))
    ax.set(ylim=(low, high), xlim=(history[0]["epoch"] - 0.5, history[-1]["epoch"] + 0.5))
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None, symbol=" %"))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.set(xlabel="epoch", ylabel=f"{SCORE_COLUMNS['acc1']} accuracy")
    _legend(ax, extra, above)


def _legend(ax: Axes, extra: Sequence = (), above: bool = True) -> None:
    """Write the legend above the axes, or inside them at the right."""
    handles = [*ax.get_legend_handles_labels()[0], *extra]
    if handles and above:
        ax.legend(
            handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize=8.5
        )
    elif handles:
        ax.legend(handles=handles, loc="center right", fontsize=7.5, framealpha=0.7)


def _mark_rates(upper: Axes, lower: Axes, history) -> None:
    """Mark the epochs at which a stepwise learning rate falls; a rate that changes in most epochs is not marked."""
    epochs, rates = _series(history, "lr")
    falls = [i for i in range(1, len(rates)) if rates[i] != rates[i - 1]]
    if len(falls) > len(rates) / 2:
        return
    look = {
        "fontsize": 8,
        "color": "0.35",
        "verticalalignment": "top",
        "transform": upper.get_xaxis_transform(),
    }
    for i in falls:
        for ax in (upper, lower):
            ax.axvline(epochs[i], color="0.5", linewidth=0.8, linestyle="--", zorder=0)
        upper.text(epochs[i], 0.98, f" lr {rates[i]:.3g}", **look)


def plot_moves(
    history: Sequence[Mapping[str, Any]],
    labels: LabelSpace,
    class_names: Sequence[str],
    ax: Axes | None = None,
    max_classes: int = 40,
) -> Figure:
    """Draw the source label of each class over epochs: one strip a class, one colour a label.

    Blue is the final label, orange the one before it, and so on: a mapping that settles early is blue early. The final
    label is written at the right. Of several labels of a class, the first one is drawn.

    Args:
        history: One row an epoch with ``epoch`` and ``source_index``, T ints, -1 for none; other rows are ignored.
        labels: The S source labels.
        class_names: T strings.
        ax: Axes to draw into; a new figure when None.
        max_classes: Most strips: the classes that changed most often; the title says if classes are left out.

    Returns:
        The figure.
    """
    rows = [row for row in history if row.get("source_index") is not None]
    if not rows:
        raise ValueError("no row of the history holds a source_index")
    index = np.asarray([list(row["source_index"]) for row in rows])  # (E, T)
    if index.shape[1] != len(class_names):
        raise ValueError(
            f"source_index holds {index.shape[1]} classes, and there are {len(class_names)} class names"
        )
    epochs = np.asarray([row["epoch"] for row in rows], dtype=float)
    moves = (index[1:] != index[:-1]).sum(0)
    classes, cut = np.arange(len(class_names)), ""
    if len(classes) > max_classes:
        classes = np.argsort(-moves, kind="stable")[:max_classes]
        cut = f", {max_classes} of {len(class_names)} classes (those that changed most)"
    ends = [labels.names[i] if (i := index[-1, t]) >= 0 else "none" for t in classes]
    names = [shorten(class_names[t], 28) for t in classes]
    ends = [shorten(name, 44 if labels.is_text else 34) for name in ends]

    margins = (text_width(names, 9) + text_width(ends, 9) + 0.8, 1.9)
    width = float(np.clip(0.25 * len(epochs), 4.0, 9.0))
    sheet = Sheet.of(ax, 1, len(classes), (width, 0.24), margins)
    _draw_strips(sheet.ax, _recency(index[:, classes]), epochs)
    size = sheet.font_size()
    name_axis(sheet.ax.yaxis, range(len(names)), names, size)
    right = sheet.ax.secondary_yaxis("right")
    name_axis(right, range(len(ends)), ends, size)
    right.tick_params(length=0)
    sheet.ax.set(xlabel="epoch", ylabel=MAPPING_COLUMNS["class"])
    settled = int((moves == 0).sum())
    text = f"{settled} of {len(class_names)} never changed; final label at right"
    sheet.title(f"Source label of each class{cut}: {text}", pad=36)
    return sheet.figure


_STRIPS = ((BLUE, "final label"), (ORANGE, "the one before"), (GREEN, "2 before"), (PURPLE, "3 before"))
_STRIPS += ((SKY, "4 before"), (YELLOW, "5 before"), ("0.7", "earlier"))


def _recency(index: np.ndarray) -> np.ndarray:
    """Return, for labels (E, T), how many other labels the class had later; 0 for the final label, -1 for none."""
    ranks = np.full(index.shape, -1)
    for column in range(index.shape[1]):
        order = list(dict.fromkeys(index[::-1, column].tolist()))
        for rank, label in enumerate(label for label in order if label >= 0):
            ranks[index[:, column] == label, column] = rank
    return ranks


def _draw_strips(ax: Axes, ranks: np.ndarray, epochs: np.ndarray) -> None:
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    ax.grid(False)
    edges = np.append(epochs - 0.5, epochs[-1] + 0.5)
    colours = np.ma.masked_less(np.minimum(ranks, len(_STRIPS) - 1).T, 0)
    rows = np.arange(ranks.shape[1] + 1) - 0.5
    palette = ListedColormap([colour for colour, _ in _STRIPS])
    ax.pcolormesh(edges, rows, colours, cmap=palette, vmin=0, vmax=len(_STRIPS) - 1)
    ax.hlines(rows, edges[0], edges[-1], color="white", linewidth=2)
    steps, strips = np.nonzero(ranks[1:] != ranks[:-1])
    ax.vlines(edges[steps + 1], strips - 0.5, strips + 0.5, color="white", linewidth=0.8)
    ax.set(xlim=(edges[0], edges[-1]), ylim=(rows[-1], rows[0]))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    shown = min(int(ranks.max(initial=0)) + 1, len(_STRIPS))
    handles = [Patch(color=colour, label=name) for colour, name in _STRIPS[:shown]]
    ax.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False, fontsize=8)
