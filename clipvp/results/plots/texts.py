"""A picture of the texts of each class, and how much the mapping leans on each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..tables import CAPTIONS
from .base import shorten, to_array
from .heat import draw_heat, draw_numbers, sheet_for

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ...labels.space import LabelSpace
    from ...mappings.base import Links

_LISTED = 10  # classes whose heaviest text is written below


def plot_texts(
    links: Links,
    labels: LabelSpace,
    class_names: Sequence[str],
    ax: Axes | None = None,
    max_classes: int = 24,
) -> Figure:
    """Draw the weights of each class's texts, the heaviest first, and name the heaviest text of each class.

    Args:
        links: The texts behind each class, with their weights; several a class.
        labels: A label space made of text.
        class_names: T strings.
        ax: Axes to draw into; a new figure when None.
        max_classes: Most rows: first the classes that lean most on one text.

    Returns:
        The figure.

    Raises:
        ValueError: The labels are not text.
    """
    if not labels.is_text:
        raise ValueError("plot_texts needs labels made of text")
    index, weight = to_array(links.index), np.where(to_array(links.index) >= 0, to_array(links.weight), 0)
    chosen = np.sort(np.argsort(-weight[:, 0], kind="stable")[:max_classes])
    rows = [shorten(class_names[target], 34) for target in chosen]
    columns = [f"{rank}" for rank in range(1, weight.shape[1] + 1)]
    sheet = sheet_for(ax, rows, columns, cell=(0.5, 0.22), lines=min(len(chosen), _LISTED) + 1)
    draw_heat(sheet, np.maximum(weight[chosen], 0), rows, columns, label="weight of the text")
    draw_numbers(
        sheet, [[f"{value:.2f}" if value else "" for value in row] for row in weight[chosen].tolist()]
    )
    heaviest = sorted(chosen, key=lambda target: -weight[target, 0])[:_LISTED]
    lines = [
        f"{shorten(class_names[target], 24)}: {shorten(labels.names[index[target, 0]], 70)} ({weight[target, 0]:.2f})"
        for target in heaviest
        if index[target, 0] >= 0
    ]
    cut = "" if len(chosen) == len(class_names) else f", {len(chosen)} of {len(class_names):,} classes"
    sheet.ax.set_ylabel("class")
    sheet.foot("texts of the class, the heaviest first", "\n".join(["the heaviest:", *lines]))
    sheet.title(f"{CAPTIONS['texts']}{cut}")
    return sheet.figure
