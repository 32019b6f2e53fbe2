"""Tables of images, such as any ``datasets.Dataset``, as a task.

Images stay undecoded: rows are read as Arrow, so that bytes and paths reach our own decoder.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image as PILImage

from ...config.schema import DataConfig
from ...registry import UserError
from ..sets import ImageSet
from .columns import find_columns
from .labels import read_labels
from .raw import RawTask, hash_files, name_few
from .split_names import ROLES, choose_split_names
from .table_splits import split_rows

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass
class Tables:
    """The splits of a data set as they are on disk.

    Args:
        splits: Split name to table.
        roots: Split name to the folder that relative image paths start from; the working folder where it is missing.
        notes: What a person should know of the reading.
    """

    splits: dict[str, Dataset]
    roots: dict[str, Path] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def from_datasets(
    tables: Tables,
    config: DataConfig,
    *,
    name: str,
    class_names: list[str] | None = None,
) -> RawTask:
    """Turn the splits of a data set into a task.

    Args:
        tables: The splits.
        config: Names of splits and columns, where they cannot be found by themselves.
        name: What to call the task in messages.
        class_names: The classes in the order of their labels, where the table has only numbers.
    """
    for split, table in tables.splits.items():
        _check_format(table, f"{name}/{split}")
    splits, notes = dict(tables.splits), list(tables.notes)
    roots, rows, base = dict(tables.roots), {}, None
    if len(splits) == 1:
        [(only, table)] = splits.items()
        if found := split_rows(table, config, name):
            (rows, note), base = found, table
            splits = {split: table.select(own) for split, own in rows.items()}
            roots = dict.fromkeys(splits, roots[only]) if only in roots else {}
            notes.append(note)
    chosen = choose_split_names(splits, config)
    first = splits[next(chosen[role] for role in ROLES if role in chosen)]
    columns = find_columns(first, config)
    used = {role: splits[chosen[role]] for role in ROLES if role in chosen}
    where = {role: f"{name}/{chosen[role]}" for role in used}
    for role, table in used.items():
        for column in columns.values():
            if column not in table.features:
                raise UserError(f"{where[role]} has no column {column!r}, which the training split has")
    names, labels = read_labels(used, columns["label"], class_names, where)
    sets = {}
    for role in used:
        root, table = roots.get(chosen[role]), used[role] if base is None else base
        images = _TableImages(table, columns["image"], root)
        fingerprint = f"table:{table._fingerprint}:{columns['image']}"
        identity = fingerprint
        if len(images) and isinstance(images[0], str):  # the table's fingerprint knows nothing of the files
            fingerprint, identity = hash_files(root or Path.cwd(), [str(image) for image in images])
        sets[role] = ImageSet(
            images, labels[role], where[role], fingerprint, identity, rows.get(chosen[role])
        )
    if others := [split for split in splits if split not in chosen.values()]:
        notes.append(f"not used: split {name_few(others)}")
    notes += [f"{split!r} is taken for {role}" for role, split in chosen.items() if split != role]
    info = {"splits": chosen, "columns": columns}
    return RawTask(names, sets.get("train"), sets.get("val"), sets.get("test"), info, notes)


def _check_format(table: Dataset, where: str) -> None:
    """Raise ``UserError`` where a data set changes its rows when they are read: images here are read undecoded."""
    if (table.format or {}).get("type") == "custom":
        raise UserError(
            f"{where} has a transform of its own (set_transform or with_transform), which is not run here; keep its "
            "result with map(), or remove it with reset_format()"
        )


class _TableImages(Sequence):
    """The undecoded images of a table: bytes, or a path where the row has no bytes."""

    def __init__(self, table: Dataset, column: str, root: Path | None):
        self._rows = table.select_columns([column]).with_format("arrow")
        self._root = root
        self._mode = getattr(table.features[column], "mode", None)  # of datasets.Image(mode=...)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        value = self._rows[int(index)].column(0)[0].as_py()
        if isinstance(value, dict):
            value = value["path"] if value.get("bytes") is None else value["bytes"]
        if isinstance(value, str):
            value = self._path(value)
        if self._mode is not None:
            with PILImage.open(io.BytesIO(value) if isinstance(value, bytes) else value) as image:
                return image.convert(self._mode)
        return value

    def _path(self, value: str) -> str:
        if value.startswith("~"):
            value = os.path.expanduser(value)
        path = (
            value if self._root is None else os.path.join(self._root, value)
        )  # an absolute path stays itself
        if os.sep == "/" and "\\" in value and not os.path.exists(path):  # written on Windows
            return self._path(value.replace("\\", "/"))
        return path
