"""Labels of the splits of a table: words or whole numbers to class names and indices."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...registry import UserError
from .columns import kind_of
from .raw import name_few

if TYPE_CHECKING:
    from datasets import Dataset

_WHOLE = re.compile(r"-?(0|[1-9]\d{0,17})(\.0+)?")


def read_labels(
    tables: dict[str, Dataset], column: str, names: Sequence[str] | None, where: dict[str, str]
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Return the class names and the class of each row, by split.

    Words are classes in alphabetical order. Whole numbers, also those written as text or as 1.0, are classes in the
    order of their values, named by the number: only those that the first split has. Where names are given, a number is
    a place in them.

    Args:
        tables: By split, in the order train, val, test; the first split has all classes.
        column: That of the labels, in every table.
        names: The classes in the order of their labels; found here when None.
        where: What to call each split in messages.

    Raises:
        UserError: Rows have no label, labels are neither words nor whole numbers, or another split has more classes.
    """
    from datasets import ClassLabel

    first = next(iter(tables))
    features = {split: table.features[column] for split, table in tables.items()}
    for split, feature in features.items():
        if getattr(feature, "names", None) != getattr(features[first], "names", None):
            raise UserError(f"{where[split]}: the classes of column {column!r} are not the training split's")
    values = {split: _values(table, column, where[split]) for split, table in tables.items()}
    if isinstance(features[first], ClassLabel):
        own = list(features[first].names)
        if names is not None and len(names) != len(own):
            raise UserError(
                f"{where[first]}: {len(own)} classes in column {column!r}, but {len(names)} class names"
            )
        names = list(names or own)
    if all(isinstance(found, list) and all(map(_WHOLE.fullmatch, found)) for found in values.values()):
        values = {
            split: np.array([int(w.partition(".")[0]) for w in words], np.int64)
            for split, words in values.items()
        }
    for split, found in values.items():
        _check_known(found, split, where[split])
    if names is not None and not isinstance(values[first], list):
        return list(names), values
    classes = list(names) if names is not None else sorted(set(_plain(values[first])))
    place = {value: label for label, value in enumerate(classes)}
    labels = {}
    for split, found in values.items():
        if unknown := sorted(set(_plain(found)) - place.keys(), key=str):
            raise UserError(f"{where[split]}: the training split has no class {name_few(map(str, unknown))}")
        labels[split] = np.array([place[value] for value in _plain(found)], np.int64)
    return [str(value) for value in classes], labels


def _plain(values: list[str] | np.ndarray) -> list[Any]:
    return values if isinstance(values, list) else values.tolist()


def _values(table: Dataset, column: str, where: str) -> list[str] | np.ndarray:
    """Return the labels of one split: words, or whole numbers (n,) int64."""
    values = table.select_columns([column]).with_format("arrow")[:].column(0)
    kind = kind_of(table.features[column])
    missing = values.null_count
    if kind.startswith("float"):
        numbers = values.to_numpy()
        missing = int(np.isnan(numbers).sum())
        if not missing and not (numbers == np.rint(numbers)).all():
            part = numbers[numbers != np.rint(numbers)][0]
            raise UserError(f"{where}: labels in column {column!r} are not whole numbers, such as {part:g}")
    elif "string" in kind:
        missing += sum(word is not None and not word.strip() for word in values.to_pylist())
    if missing:
        raise UserError(f"{where}: {missing} rows have no label in column {column!r}")
    if "string" in kind:
        return [word.strip() for word in values.to_pylist()]
    if kind == "bool":
        return [str(value) for value in values.to_pylist()]
    if kind.startswith(("int", "uint", "float")) or kind == "ClassLabel":
        return values.to_numpy().astype(np.int64)
    raise UserError(
        f"{where}: labels in column {column!r} are {kind}; give class labels, strings or whole numbers"
    )


def _check_known(values: list[str] | np.ndarray, split: str, where: str) -> None:
    """Raise ``UserError`` where labels are below 0, which data sets write for images whose class is not known."""
    if isinstance(values, list) or not (values < 0).any():
        return
    count, lowest = int((values < 0).sum()), int(values.min())
    if count == len(values) and split != "train":
        raise UserError(
            f"{where}: all labels are {lowest}, so it has no classes; leave it out with data.{split}_split: none"
        )
    raise UserError(
        f"{where}: {count} of {len(values)} labels are below 0 ({lowest}), which no class has; remove the rows"
    )
