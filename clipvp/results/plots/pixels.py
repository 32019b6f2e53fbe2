"""Pictures made of pixels: the prompt, prompted images, and an example of each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..tables import CAPTIONS, mapping_text
from .base import BLANK, VERMILION, new_figure, shorten, title, to_array, to_picture, wrap, writing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ...prompts.base import VisualPrompt


def plot_prompt(prompt: VisualPrompt) -> Figure:
    """Draw a prompt as a picture, and how far each pixel has moved from its start.

    A prompt that takes the place of pixels (padding) is shown as it is. One that is added to an image is shown around
    mid grey, on a scale that the panel states. Both panels are blank where the prompt does not act.

    Args:
        prompt: Any visual prompt; it is not changed.

    Returns:
        A figure of two panels: the prompt, and the mean over channels of its absolute change. For a prompt that no
        picture shows, a note.
    """
    height, width = prompt.canvas
    text = (
        f"{prompt.kind} prompt on a canvas of {height} x {width}, {prompt.num_trainable():,} trained values"
    )
    found = prompt.learned()
    if found is None:
        figure = new_figure(9.0, 2.0)
        figure.text(0.5, 0.4, "no picture shows this prompt", ha="center", va="center", color="0.35")
        title(figure, text)
        return figure
    learned, start = (to_array(pixels).astype(np.float64) for pixels in (found.pixels, found.start))
    mask, acts = to_array(found.mask), bool(found.mask.any())
    bad = int((~np.isfinite(learned)).sum())
    learned = np.where(np.isfinite(learned), learned, start)
    change = np.ma.masked_array(np.abs(learned - start).mean(0), ~mask)

    figure = new_figure(9.0, float(np.clip(4.1 * height / width, 2.0, 9.0)) + 0.85)
    left, right = figure.subplots(1, 2)
    if acts and found.added:
        scale = float(np.quantile(np.abs(learned[:, mask]), 0.995)) or 1.0
        shown = 0.5 + learned / (2 * scale)
        left.set_title(f"added to the image\nmid grey 0, black −{scale:.3g}, white +{scale:.3g}", fontsize=10)
    else:
        shown = learned
        left.set_title("prompt\npixels from 0 to 1" if acts else "the prompt acts on no pixel\n", fontsize=10)
    alpha = mask[..., None].astype(np.float64)
    left.imshow(np.concatenate([to_picture(shown), alpha], axis=2))

    largest = float(change.max()) if acts else 0.0
    heat = right.imshow(change, cmap="viridis", vmin=0, vmax=largest or 1.0)
    right.set_title("change since the start\nmean over channels, in pixel values", fontsize=10)
    if acts:
        figure.colorbar(heat, ax=right, shrink=0.85)
    for ax in (left, right):
        ax.set(facecolor=BLANK, xticks=[], yticks=[])
        ax.grid(False)
        if not mask.all():
            ax.set_xlabel("light grey: the image, unchanged", fontsize=9)
    title(figure, text + (f"; {bad:,} VALUES ARE NOT FINITE" if bad else ""))
    return figure


def plot_examples(
    images: Any, prompted: Any, titles: Sequence[str] | None = None, max_images: int = 8
) -> Figure:
    """Draw images, and below each one what the source model sees.

    Args:
        images: (N, 3, h, w) in [0, 1].
        prompted: (N, 3, H, W), clamped to [0, 1] for display.
        titles: N strings, written above the images.
        max_images: Most columns; the title says if images are left out.

    Returns:
        A figure of two rows and at most ``max_images`` columns.
    """
    total = len(images)
    if not total or len(prompted) != total or (titles is not None and len(titles) != total):
        lengths = (
            f"{total} images, {len(prompted)} prompted, {'no' if titles is None else len(titles)} titles"
        )
        raise ValueError(f"images, prompted and titles must have one length above 0, got {lengths}")
    number = min(total, max_images)
    figure = new_figure(max(4.0, 1.6 * number + 0.4), 3.7 if titles is None else 4.2)
    axes = figure.subplots(2, number, squeeze=False)
    outside = False
    for column in range(number):
        canvas = to_array(prompted[column])
        outside = outside or (
            canvas.dtype != np.uint8 and bool((canvas < -1e-3).any() or (canvas > 1.001).any())
        )
        axes[0, column].imshow(to_picture(images[column]))
        axes[1, column].imshow(to_picture(canvas))
        if titles is not None:
            (text,), look = writing([wrap(" ".join(str(titles[column]).split()), 1.55, 8.5, lines=3)])
            axes[0, column].set_title(text, fontsize=8.5, **look)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
    sizes = [" x ".join(map(str, batch[0].shape[-2:])) for batch in (images, prompted)]
    axes[0, 0].set_ylabel(f"image\n{sizes[0]}", fontsize=9)
    axes[1, 0].set_ylabel(f"prompted\n{sizes[1]}", fontsize=9)
    text = CAPTIONS["examples"]
    text += f", the first {number} of {total}" if number < total else ""
    title(figure, text + (" (clamped to 0..1)" if outside else ""))
    return figure


def plot_gallery(
    rows: Sequence[Mapping[str, Any]],
    examples: Sequence[Any],
    label_examples: Sequence[Any] | None = None,
    max_classes: int = 24,
) -> Figure:
    """Draw an image of each class beside the source labels that the class takes.

    Args:
        rows: As ``mapping_rows`` returns them: class, label, count and share of each class.
        examples: For each row an image (3, h, w) in [0, 1] of the class, or None.
        label_examples: For each row an image of the source label, or None.
        max_classes: Most classes; the title says if classes are left out.

    Returns:
        A figure with one axes a class.
    """
    total = len(rows)
    for what, pictures in (("examples", examples), ("label_examples", label_examples)):
        if pictures is not None and len(pictures) != total:
            raise ValueError(
                f"{total} rows and {len(pictures)} {what}; give one for each row, None without an image"
            )
    if not total:
        raise ValueError("rows are empty")
    number = min(total, max_classes)
    columns = min(number, 3)
    height, pictures = 1.15, 1 + (label_examples is not None)
    width = 2.1 + pictures * (height + 0.1)
    figure = new_figure(max(5.0, columns * (width + 0.1)), -(-number // columns) * (height + 0.12) + 0.7)
    axes = figure.subplots(-(-number // columns), columns, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, row, position in zip(axes.flat, rows, range(number), strict=False):
        ax.set(xlim=(0, width / height), ylim=(0, 1), aspect="equal")
        _draw_image(ax, examples[position], 0.0)
        if label_examples is not None:
            _draw_image(ax, label_examples[position], 1.0 + 0.1 / height)
        _write_row(ax, row, pictures * (1 + 0.1 / height), 2.0)
    cut = f", the first {number} of {total}" if number < total else ""
    title(figure, f"{CAPTIONS['gallery']}{cut}")
    return figure


def _draw_image(ax, image: Any, left: float) -> None:
    """Draw an image into the unit square that starts at ``left``, without changing its aspect."""
    from matplotlib.patches import Rectangle

    if image is None:
        ax.add_patch(Rectangle((left, 0), 1, 1, facecolor=BLANK, edgecolor="none"))
        return
    pixels = to_picture(image)
    h, w = (side / max(pixels.shape[:2]) for side in pixels.shape[:2])
    limits = ax.get_xlim(), ax.get_ylim()
    ax.imshow(pixels, extent=(left + (1 - w) / 2, left + (1 + w) / 2, (1 - h) / 2, (1 + h) / 2))
    ax.set(xlim=limits[0], ylim=limits[1])


def _write_row(ax, row: Mapping[str, Any], left: float, inches: float) -> None:
    """Write the class, its source labels, and the count and share of the first one, from top to bottom."""
    label = "no source label" if row["label"] is None else f"→ {shorten(mapping_text(row, 'label'), 90)}"
    if row.get("count") is None:
        numbers = "not counted"
    else:
        share = "" if row.get("share") is None else f", {row['share']:.0%} of the class"
        numbers = f"when chosen: {row['count']:,} images{share}"
    (name, label), look = writing(
        [wrap(shorten(row["class"], 48), inches, 10.5, 2), wrap(label, inches, 8.5, 3)]
    )
    numbers = wrap(numbers, inches, 8)
    text = {"verticalalignment": "top", **look}
    ax.text(left, 1.0, name, fontsize=9.5, fontweight="bold", **text)
    ax.text(left, 1.0 - 0.16 * (1 + name.count("\n")), label, fontsize=8.5, color=VERMILION, **text)
    ax.text(left, 0.0, numbers, fontsize=8, color="0.35", verticalalignment="bottom")
