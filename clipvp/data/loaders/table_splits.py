"""Rows of one table to splits: by a column of split names, or by the first folder of the paths."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...config.schema import DataConfig
from ...registry import UserError, nearest
from .columns import IMAGE_COLUMNS, SPLIT_COLUMNS, column_values, find_name, kind_of
from .raw import name_few
from .split_names import NONE, role_of, roles_of

if TYPE_CHECKING:
    from datasets import Dataset


def split_rows(table: Dataset, config: DataConfig, name: str) -> tuple[dict[str, list[int]], str] | None:
    """Return the rows of each split by name and a sentence that says where they are from; None where there are none.

    Raises:
        UserError: The split column does not exist, or has values that are no splits.
    """
    if config.split_column == NONE:
        return None
    column = config.split_column
    if column is not None and column not in table.features:
        raise UserError(f"data.split_column: there is no {column!r}; {nearest(column, table.features)}")
    column = column or find_name(table, SPLIT_COLUMNS)
    if column is not None:
        words, note = _split_names(table, column, config, name), f"splits are from column {column!r}"
    else:
        words, note = _first_folders(table, config), "splits are from the first folder of the paths"
    if words is None:
        return None
    rows: dict[str, list[int]] = {}
    for row, word in enumerate(words):
        rows.setdefault(word, []).append(row)
    return dict(sorted(rows.items())), note


def _split_names(table: Dataset, column: str, config: DataConfig, name: str) -> list[str]:
    """Return the split of each row as its column says."""
    words = ["" if value is None else str(value).strip() for value in column_values(table, column)]
    if names := getattr(table.features[column], "names", None):
        words = [names[int(word)] for word in words]
    known = {config.train_split, config.val_split, config.test_split, *roles_of(set(words))}
    if strange := sorted(set(words) - known):
        raise UserError(
            f"{name}: column {column!r} has values that are no split: {name_few(strange)}; name splits with "
            f"data.train_split and data.test_split, or set data.split_column: {NONE}"
        )
    return words


def _first_folders(table: Dataset, config: DataConfig) -> list[str] | None:
    """Return the first folder of each image's path where all of them are splits, and one is train; else None."""
    column = config.image_column or find_name(table, IMAGE_COLUMNS)
    if column not in table.features or "string" not in kind_of(table.features[column]):
        return None
    parts = [Path(str(path).replace("\\", "/")).parts for path in column_values(table, column)]
    folders = [part[0] if len(part) > 1 else "" for part in parts]
    roles = {role_of(folder) for folder in set(folders)}
    return folders if None not in roles and "train" in roles and len(roles) > 1 else None
