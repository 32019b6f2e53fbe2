"""What the pictures share: figures without pyplot, text with any letters, saving."""

from __future__ import annotations

import math
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...files import write_atomic
from ...registry import UserError, check_choice

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The palette of Okabe and Ito, whose colours people with any colour vision can tell apart.
BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, YELLOW = "#CC79A7", "#56B4E9", "#F0E442"
BLANK = "0.92"  # where a picture has nothing to show

Inches = tuple[float, float]  # width and height
TITLE_SIZE, TEXT_SIZE = 11.0, 9.0
LARGEST = 22.0  # inches of all cells of a figure, in either direction

# Fonts with letters that matplotlib's own font lacks; those that are installed are used.
_MORE_FONTS = """
Noto Sans CJK SC, Noto Sans CJK JP, Noto Sans CJK KR, Noto Sans SC, Noto Sans JP, Noto Sans KR, Source
Han Sans SC, WenQuanYi Zen Hei, WenQuanYi Micro Hei, Droid Sans Fallback, IPAexGothic, Microsoft YaHei,
SimHei, Yu Gothic, Malgun Gothic, NanumGothic, PingFang SC, Hiragino Sans, Apple SD Gothic Neo, Arial
Unicode MS, Noto Sans, Noto Sans Devanagari, Noto Sans Bengali, Noto Sans Tamil, Noto Sans Thai, Noto
Sans Arabic, Noto Sans Hebrew, FreeSans, Unifont
"""


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, in inches, whose layout keeps all labels inside.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("pictures need matplotlib, which is missing: pip install 'clipvp[plots]'") from error
    return Figure(figsize=(width, height), layout="constrained")


@dataclass
class Sheet:
    """Axes to draw into, and the size of one cell of the picture in them.

    Args:
        ax: The axes.
        own: Whether the figure was made for this picture, so that the title may span the figure.
        cell: Approximate width and height of a cell in inches.
        columns: Number of columns.
    """

    ax: Axes
    own: bool
    cell: Inches
    columns: int

    @classmethod
    def of(cls, ax: Axes | None, columns: int, rows: int, cell: Inches, margins: Inches) -> Sheet:
        """Return a sheet for the given axes, or for those of a new figure, whose size follows the number of cells.

        Args:
            ax: Axes to draw into; those of a new figure when None.
            columns: Number of columns.
            rows: Number of rows.
            cell: Width and height of a cell in a new figure; smaller where the figure would be too large.
            margins: Width and height of everything around the cells.
        """
        if ax is not None:
            box = ax.get_window_extent().transformed(ax.figure.dpi_scale_trans.inverted())
            # A layout engine will shrink the axes for names and colour bar.
            engine = ax.figure.canvas.figure.get_layout_engine() is not None
            width = max(box.width - 0.6 * margins[0] * engine, 0.2 * box.width)
            height = max(box.height - 0.4 * margins[1] * engine, 0.2 * box.height)
            return cls(ax, False, (width / columns, height / rows), columns)
        width, height = min(cell[0], LARGEST / columns), min(cell[1], LARGEST / rows)
        figure = new_figure(max(columns * width, 3.0) + margins[0], max(rows * height, 2.2) + margins[1])
        return cls(figure.subplots(), True, (width, height), columns)

    @property
    def figure(self) -> Figure:
        return self.ax.figure.canvas.figure  # the whole figure, also for axes in a sub-figure

    def font_size(self, inches: float | None = None) -> float:
        """Return the font size, in points, for lines of a height in inches; a cell's height by default."""
        return float(np.clip((inches or self.cell[1]) * 72 * 0.78, 4.0, TEXT_SIZE))

    def title(self, text: str, pad: float = 6.0) -> None:
        """Write the title in lines that fit, above the figure or ``pad`` points above given axes."""
        if self.own:
            title(self.figure, text)
        else:
            width = max(self.cell[0] * self.columns, 2.5)
            (text,), look = writing([wrap(text, width, TEXT_SIZE)])
            self.ax.set_title(text, fontsize=TEXT_SIZE, pad=pad, **look)

    def foot(self, label: str, text: str) -> None:
        """Name the x axis, and write lines of text below the picture."""
        lines, look = writing(text.split("\n"))
        if self.own and text:
            self.ax.set_xlabel(label)
            self.figure.supxlabel("\n".join(["", *lines]), fontsize=TEXT_SIZE, multialignment="left", **look)
        else:
            both = "\n".join([label, *lines] if text else [label])
            self.ax.set_xlabel(both, multialignment="left", **look)


def title(figure: Figure, text: str) -> None:
    """Write a title above a whole figure, in lines that fit."""
    (text,), look = writing([wrap(text, figure.get_figwidth() - 0.3, TITLE_SIZE)])
    figure.suptitle(text, fontsize=TITLE_SIZE, **look)


def to_array(values: Any) -> np.ndarray:
    """Return a tensor of any device and type, an array or a list as an array, which may share its memory."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() else values
    return np.asarray(values)


def to_picture(image: Any) -> np.ndarray:
    """Return an image (3, h, w), in [0, 1] or uint8, as (h, w, 3) in [0, 1], clamped."""
    pixels = to_array(image)
    if pixels.ndim != 3 or pixels.shape[0] != 3:
        raise ValueError(f"an image is (3, h, w), got {tuple(pixels.shape)}")
    if pixels.dtype == np.uint8:
        pixels = pixels / 255
    return np.clip(np.nan_to_num(pixels), 0, 1).transpose(1, 2, 0)


def shorten(text: str, length: int) -> str:
    """Return text on one line, at most ``length`` characters; an ellipsis marks a cut."""
    text = " ".join(str(text).split())
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def text_width(texts: Iterable[str], size: float) -> float:
    """Return the approximate width in inches of the widest text at a size in points."""
    units = (sum(1.0 if unicodedata.east_asian_width(letter) in "WF" else 0.6 for letter in t) for t in texts)
    return max(units, default=0.0) * size / 72


def wrap(text: str, inches: float, size: float, lines: int | None = None) -> str:
    """Return text in lines of at most a width in inches; what does not fit into ``lines`` lines is cut."""
    letter = text_width([text], size) / max(len(text), 1) or size / 72
    width = max(4, int(inches / letter))
    return "\n".join(textwrap.wrap(text, width, max_lines=lines, placeholder="…")) if text else ""


def writing(texts: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Return texts ready to draw, and the properties to draw them with.

    ``$`` and ``_`` are drawn as they are. Letters that the font lacks come from other installed fonts; a letter that
    none of them has is drawn as a box.
    """
    from matplotlib import font_manager, rcParams

    texts = [_clean(text) for text in texts]
    families = list(rcParams["font.family"])
    fonts = [font_manager.findfont(font_manager.FontProperties(family=[family])) for family in families]
    have = frozenset().union(*map(_letters, fonts))
    missing = set("".join(texts)) - have - {"\n"}
    if missing:
        installed = {font.name: font.fname for font in font_manager.fontManager.ttflist}
        for family in ("DejaVu Sans", *" ".join(_MORE_FONTS.split()).split(", ")):
            if missing and family in installed:
                more = _letters(installed[family])
                families += [family] if missing & more else []
                missing -= more
        box = "□" if "□" in have else "?"
        texts = [text.translate(dict.fromkeys(map(ord, missing), box)) for text in texts]
    return texts, {"fontfamily": families, "parse_math": False, "usetex": False}


def _clean(text: str) -> str:
    composed = unicodedata.normalize("NFC", str(text)).replace("\t", " ")
    return "".join(c for c in composed if c == "\n" or unicodedata.category(c)[0] != "C")


@cache
def _letters(path: str) -> frozenset[str]:
    from matplotlib.font_manager import get_font

    return frozenset(map(chr, get_font(path).get_charmap()))


def name_axis(axis, positions: Sequence[float], names: Sequence[str], size: float, **look) -> None:
    """Set the ticks of an x or y axis to names."""
    names, plain = writing(names)
    axis.set_ticks(list(positions), labels=names, fontsize=size, **plain, **look)


def finite(value: Any) -> bool:
    """Return whether a value is a finite number; None is not."""
    return value is not None and math.isfinite(value)


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure to a file, whole or not at all.

    The figures of this package need no closing: they are freed with their last reference.

    Args:
        figure: Any matplotlib figure; it is not changed.
        path: Ends in .png, .pdf or .svg; a missing folder is created.

    Returns:
        The path.

    Raises:
        UserError: Another ending.
    """
    path, ending = Path(path), Path(path).suffix.lower().lstrip(".")
    check_choice("format of a picture", ending, ["png", "pdf", "svg"])
    if engine := figure.get_layout_engine():
        engine.execute(figure)  # the layout is exact from its second run on
    write_atomic(path, lambda aside: figure.savefig(aside, format=ending, dpi=150))
    return path
