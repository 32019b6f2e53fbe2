"""Names of columns and scores, captions, and rows of the tables that people see.

The terminal, the model card, comparisons, the page and the plots take them from here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..mappings.base import Links

# Scores of a run by their key in results.json, in the order in which they are shown.
SCORES = {
    "test.best_val": "test, best on validation",
    "test.last": "test, last epoch",
    "test.average": "test, average of the last epochs",
    "val.best": "validation, best epoch",
    "test.best_on_test": "test, best on test (selected on test)",
}
# Columns of a comparison's table by their key in compare.json, beside the scores.
COMPARISON_COLUMNS = {
    "interval": "95 % interval",
    "minus_pick": "minus the pick (95 %)",
    "numbers": "trainable numbers",
    "train_seconds": "seconds to train",
    "bytes": "size (kB)",
    "seeds": "seeds",
    "seconds": "seconds a run",
}
SHOTS = "training images a class"
SCORE_COLUMNS = {"acc1": "top-1", "acc5": "top-5", "mean_per_class_recall": "per class", "n": "images"}
# What ``saved_prompt`` in results.json means.
SAVED_PROMPTS = {
    "best_val": "the prompt with the best validation accuracy",
    "last": "the prompt of the last epoch",
    "average": "the average of the last epochs",
}
# Columns of the mapping table by their key in results.json. The counts are those of the mapping's last fit, which comes
# before the steps of its epoch, so they do not describe the saved prompt.
MAPPING_COLUMNS = {
    "class": "target class",
    "label": "source label",
    "count": "count when chosen",
    "share": "share when chosen",
    "acc1": "test accuracy",
}
# Values over epochs by their key in metrics.jsonl.
EPOCH_COLUMNS = {
    "val_acc1": "validation accuracy",
    "test_acc1": "test accuracy",
    "train_acc1": "training accuracy",
    "train_loss": "training loss",
    "mapping_changed": "classes remapped",
}
# Phases in which the source is asked about images, by their key in results.json, in the order in which they are shown.
QUERIES_NAME = "queries to the source"
QUERIES = {
    "features": "features",
    "training": "training",
    "counting": "counting",
    "validating": "validation",
    "testing": "tests",
}
# Pictures by the name of their file, in the order in which they are shown.
CAPTIONS = {
    "prompt": "The prompt, and how far each pixel moved from its start",
    "examples": "Images, and what the source model sees",
    "masks": "Images, and the mask or picture that the prompt makes of each",
    "gallery": "Classes and the source labels they take",
    "mapping": "Source labels that the test images are seen as",
    "templates": "Templates of the labels that the test images are seen as",
    "texts": "What the mapping leans on: weights of each class's texts",
    "confusion": "Confusion of the test images",
    "moves": "How the mapping moved",
    "history": "The trials of the sweep in their order",
    "importance": "Which keys matter",
    "slices": "Validation accuracy along each key",
}

MOST_LINKS = 5  # source labels that results.json holds of each class
_SHOWN_LINKS = 3  # of them in a cell


def mapping_rows(
    links: Links, label_names: Sequence[str], class_names: Sequence[str]
) -> list[dict[str, Any]]:
    """Return one row a class for people, ready for JSON.

    Args:
        links: Of the mapping; the first link of a class is its row's label.
        label_names: The S source labels.
        class_names: The T target classes.

    Returns:
        Rows of class, label (None where there is none), index, count and share (None where nothing was counted). Where
        a class has several links, ``links`` holds the label and the weight of each.
    """
    size = len(class_names)
    counts = links.count.tolist() if links.count is not None else [[None]] * size
    totals = links.total.tolist() if links.total is not None else [None] * size
    rows = []
    for name, index, weight, count, total in zip(
        class_names, links.index.tolist(), links.weight.tolist(), counts, totals, strict=True
    ):
        row = {
            "class": name,
            "label": label_names[index[0]] if index[0] >= 0 else None,
            "index": index[0],
            "count": count[0],
            "share": count[0] / total if total else None,
        }
        if len(index) > 1:
            pairs = zip(index, weight, strict=True)
            row["links"] = [{"label": label_names[i], "weight": round(w, 6)} for i, w in pairs if i >= 0]
        rows.append(row)
    return rows


def mapping_columns(
    rows: Sequence[Mapping[str, Any]], keys: Iterable[str] = tuple(MAPPING_COLUMNS)
) -> list[str]:
    """Return those of ``keys`` for which any row of the mapping table has a value."""
    return [key for key in keys if any(row.get(key) is not None for row in rows)]


def mapping_text(row: Mapping[str, Any], key: str) -> str:
    """Return one cell of the mapping table: a share in %, several labels with their weights, a dash for None.

    >>> links = [{"label": "tench", "weight": 0.7}, {"label": "eel", "weight": 0.2}]
    >>> mapping_text({"label": "tench", "links": links}, "label")
    'tench (0.7), eel (0.2)'
    """
    value = row.get(key)
    if key in ("share", "acc1"):
        return percent(value)
    if key == "label" and row.get("links"):
        return ", ".join(f"{link['label']} ({link['weight']:.2g})" for link in row["links"][:_SHOWN_LINKS])
    return "-" if value is None else str(value)


def mapping_table(rows: Sequence[Mapping[str, Any]], keys: Iterable[str] = tuple(MAPPING_COLUMNS)) -> str:
    """Return the mapping table for a terminal, without columns that hold no value."""
    from tabulate import tabulate

    shown = mapping_columns(rows, keys)
    return tabulate(
        [[mapping_text(row, key) for key in shown] for row in rows],
        [MAPPING_COLUMNS[key] for key in shown],
        colalign=["left" if key in ("class", "label") else "right" for key in shown],
        disable_numparse=True,
        maxcolwidths=[{"class": 32, "label": 60}.get(key) for key in shown],
    )


def scores_table(metrics: Mapping[str, Any]) -> list[list[Any]]:
    """Return one row for each score of a run that has images: its label, accuracies as text, and images."""
    return [
        [label, percent(m["acc1"]), percent(m["acc5"]), percent(m["mean_per_class_recall"]), m["n"]]
        for key, label in SCORES.items()
        if (m := metrics.get(key)) and m["n"]
    ]


def queries_text(queries: Mapping[str, int]) -> str:
    """Return how many images the source was asked about, in all and by phase. Answers from the disk count too.

    >>> queries_text({"total": 1300, "counting": 1000, "testing": 300})
    '1,300 queries to the source, answers from the disk included: counting 1,000, tests 300'
    """
    parts = [f"{name} {queries[key]:,}" for key, name in QUERIES.items() if queries.get(key)]
    return f"{queries['total']:,} {QUERIES_NAME}, answers from the disk included" + (
        f": {', '.join(parts)}" if parts else ""
    )


def percent(share: float | None) -> str:
    """Return a share of 0..1 as text in %, a dash for None.

    >>> percent(0.7889), percent(None)
    ('78.9 %', '-')
    """
    return "-" if share is None else f"{100 * share:.1f} %"


def signed(share: float | None) -> str:
    """Return a difference of shares in points, with its sign, a dash for None.

    >>> signed(0.0123), signed(-0.0049), signed(0.0)
    ('+1.2', '-0.5', '0.0')
    """
    text = "-" if share is None else f"{100 * share:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def plain(text: Any) -> str:
    """Return text on one line that Markdown shows as it is."""
    line = " ".join(str(text).split())
    return re.sub(r"([\\`*_\[\]|<>#&])", r"\\\1", line)


def code(text: Any) -> str:
    """Return text as Markdown code on one line."""
    return f"`{' '.join(str(text).replace('`', chr(39)).split())}`"


def markdown_table(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a Markdown table; any text may be in a cell, and None is a dash."""
    cells = [["-" if cell is None else plain(cell) for cell in row] for row in rows]
    lines = [list(headers), ["---"] * len(headers), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
