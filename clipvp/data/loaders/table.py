"""Tables of images: parquet and CSV files, hub data sets, and any ``datasets.Dataset``.

Images stay undecoded: rows are read as Arrow, so that bytes and paths reach our own decoder.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...config.schema import DataConfig
from ...registry import UserError, nearest
from ..sets import ImageSet
from .raw import RawTask, choose_split_names, fingerprint_files, name_few

if TYPE_CHECKING:
    from datasets import Dataset

# Names that count where no column has the type; a type always wins over a name.
IMAGE_COLUMNS = ("image", "img", "path", "file", "file_name", "filename", "filepath")
LABEL_COLUMNS = ("label", "labels", "class", "target")


def load_table(config: DataConfig, class_names: list[str] | None = None) -> RawTask:
    """Load a parquet or CSV file, a folder of parquet files, or a hub data set.

    Args:
        config: What to load.
        class_names: The classes in the order of their labels; the table's own when empty.
    """
    import datasets

    path = Path(config.name).expanduser()
    root = path if path.is_dir() else path.parent
    try:
        if path.is_file():
            kind = "csv" if path.suffix == ".csv" else "parquet"
            splits = datasets.load_dataset(kind, data_files={"train": str(path)})
        elif path.is_dir():
            splits = datasets.load_dataset(str(path), config.config)
        else:
            root = None
            splits = datasets.load_dataset(config.name, config.config, revision=config.revision)
    except Exception as error:  # the hub's client raises from five packages; each message says enough
        taken = "" if path.exists() else " (no file or folder here, so taken for a hub data set)"
        reason = " ".join(str(error).split()) or repr(error)
        if "scripts are no longer supported" in reason:
            reason = (
                "it is made by a script of its own, which datasets no longer runs; take the hub's conversion with "
                "data.revision: refs/convert/parquet, or another repository that holds Parquet files"
            )
        raise UserError(f"data.name: cannot load {config.name!r}{taken}: {reason}") from error
    where = str(path) if path.exists() else f"hub data set {config.name}"
    name = path.stem if path.is_file() else path.name
    raw = from_datasets(dict(splits), config, name=name, root=root, class_names=class_names)
    raw.info = {"from": where, "revision": config.revision, **raw.info}
    return raw


def from_datasets(
    splits: dict[str, Dataset],
    config: DataConfig,
    *,
    name: str,
    root: Path | None = None,
    class_names: list[str] | None = None,
) -> RawTask:
    """Turn the splits of a data set into a task.

    Args:
        splits: Split name to table.
        config: Names of splits and columns, where they cannot be found by themselves.
        name: What to call the task in messages.
        root: Folder that relative image paths start from; the working folder when empty.
        class_names: The classes in the order of their labels, where the table has only numbers.
    """
    chosen = choose_split_names(splits, config)
    columns = _find_columns(splits[chosen["train"]], config)
    sets, names = {}, class_names
    for role in ("train", "val", "test"):
        if role not in chosen:
            continue
        table, set_name = splits[chosen[role]], f"{name}/{chosen[role]}"
        for column in columns.values():
            if column not in table.features:
                raise UserError(f"{set_name} has no column {column!r}, which the training split has")
        trained = getattr(splits[chosen["train"]].features[columns["label"]], "names", None)
        if getattr(table.features[columns["label"]], "names", None) != trained:
            raise UserError(
                f"{set_name}: the classes of column {columns['label']!r} are not the training split's"
            )
        names, labels = _read_labels(table, columns["label"], names, set_name)
        images = _TableImages(table, columns["image"], root)
        fingerprint = f"table:{table._fingerprint}:{columns['image']}"
        if len(images) and isinstance(images[0], str):  # the table's fingerprint knows nothing of the files
            fingerprint = fingerprint_files(root or Path.cwd(), [str(image) for image in images])
        sets[role] = ImageSet(images, labels, set_name, fingerprint)
    info = {"splits": chosen, "columns": columns}
    return RawTask(names, sets["train"], sets.get("val"), sets.get("test"), info)


class _TableImages(Sequence):
    """The undecoded images of a table: bytes, or a path where the row has no bytes."""

    def __init__(self, table: Dataset, column: str, root: Path | None):
        self._rows = table.select_columns([column]).with_format("arrow")
        self._root = root

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        value = self._rows[int(index)].column(0)[0].as_py()
        if isinstance(value, dict):
            value = value["path"] if value.get("bytes") is None else value["bytes"]
        if isinstance(value, str) and self._root is not None:
            return os.path.join(self._root, value)  # an absolute path stays itself
        return value


def _find_columns(table: Dataset, config: DataConfig) -> dict[str, str]:
    """Return the names of the image and the label column."""
    from datasets import ClassLabel, Image

    listed = ", ".join(f"{name} ({_kind(feature)})" for name, feature in table.features.items())
    columns = {}
    for role, kind, usual in (("image", Image, IMAGE_COLUMNS), ("label", ClassLabel, LABEL_COLUMNS)):
        asked = getattr(config, f"{role}_column")
        typed = [name for name, feature in table.features.items() if isinstance(feature, kind)]
        found = typed or [name for name in usual if name in table.features][:1]
        if asked is not None and asked not in table.features:
            raise UserError(f"data.{role}_column: there is no {asked!r}; {nearest(asked, table.features)}")
        if asked is None and len(found) != 1:
            which = "several columns" if found else "no column"
            raise UserError(f"{which} can be the {role}; set data.{role}_column to one of: {listed}")
        columns[role] = asked or found[0]
    if not _holds_images(table.features[columns["image"]]):
        raise UserError(
            f"data.image_column: {columns['image']!r} holds neither images nor paths; there are: {listed}"
        )
    return columns


def _holds_images(feature: Any) -> bool:
    from datasets import Image, Value

    if isinstance(feature, dict):  # how a file written without the datasets library shows images
        return "bytes" in feature or "path" in feature
    return isinstance(feature, Image) or (
        isinstance(feature, Value) and feature.dtype in ("string", "large_string", "binary", "large_binary")
    )


def _read_labels(
    table: Dataset, column: str, names: list[str] | None, where: str
) -> tuple[list[str], np.ndarray]:
    """Return the class names (found here when there are none yet) and the label of each row."""
    from datasets import ClassLabel

    feature = table.features[column]
    values = table.select_columns([column]).with_format("arrow")[:].column(0)
    if values.null_count:
        raise UserError(f"{where}: {values.null_count} rows have no label in column {column!r}")
    kind = _kind(feature)
    if isinstance(feature, ClassLabel):
        if names is not None and len(names) != len(feature.names):
            raise UserError(
                f"{where}: {len(feature.names)} classes in column {column!r}, but {len(names)} class names"
            )
        return names or list(feature.names), values.to_numpy()
    if kind in ("string", "large_string"):
        words = values.to_pylist()
        names = names or sorted(set(words))
        label_of = {name: label for label, name in enumerate(names)}
        if unknown := sorted(set(words) - set(names)):
            raise UserError(f"{where}: the training split has no class {name_few(unknown)}")
        return names, np.array([label_of[word] for word in words], np.int64)
    if kind.startswith(("int", "uint")):
        labels = values.to_numpy().astype(np.int64)
        if names is None:
            top = int(labels.max(initial=-1))
            if top >= len(labels):
                raise UserError(
                    f"{where}: label {top} is too large for {len(labels)} images; labels count from 0"
                )
            names = [str(label) for label in range(top + 1)]
        return names, labels
    raise UserError(
        f"{where}: labels in column {column!r} are {kind}; give class labels, strings or integers"
    )


def _kind(feature: Any) -> str:
    return getattr(feature, "dtype", None) if type(feature).__name__ == "Value" else type(feature).__name__
