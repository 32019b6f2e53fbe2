"""A picture of what a prompt makes of each image alone, such as its masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..tables import CAPTIONS
from .base import new_figure, title, to_array, to_picture, wrap, writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_masks(images: Any, masks: Any, titles: Sequence[str], max_images: int = 8) -> Figure:
    """Draw images, and below each one what the prompt makes of it alone: the factors by which it acts, or what it adds.

    Args:
        images: (N, 3, h, w) in [0, 1].
        masks: (N, 3, H, W), as ``VisualPrompt.masks`` gives them; drawn around mid grey, on one scale that the
            picture states.
        titles: N strings, written above the images.
        max_images: Most columns.

    Returns:
        A figure of two rows and at most ``max_images`` columns.
    """
    number = min(len(images), max_images)
    values = [to_array(mask).astype(np.float64) for mask in masks[:number]]
    finite = np.abs(np.concatenate([value[np.isfinite(value)] for value in values]))
    scale = float(np.quantile(finite, 0.995)) if finite.size else 0.0
    figure = new_figure(max(4.0, 1.6 * number + 0.4), 4.2)
    axes = figure.subplots(2, number, squeeze=False)
    for column in range(number):
        axes[0, column].imshow(to_picture(images[column]))
        shown = 0.5 + np.nan_to_num(values[column]) / (2 * (scale or 1.0))
        axes[1, column].imshow(to_picture(shown), interpolation="nearest")
        (text,), look = writing([wrap(" ".join(str(titles[column]).split()), 1.55, 8.5, lines=3)])
        axes[0, column].set_title(text, fontsize=8.5, **look)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
    axes[0, 0].set_ylabel("image", fontsize=9)
    axes[1, 0].set_ylabel("made of it", fontsize=9)
    title(figure, f"{CAPTIONS['masks']}; mid grey 0, black −{scale:.3g}, white +{scale:.3g}")
    return figure
