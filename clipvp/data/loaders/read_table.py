"""Tables from where they are: parquet, CSV and JSON files, folders of them, saved data sets, and the hub."""

from __future__ import annotations

import os
from pathlib import Path

from ...config.schema import DataConfig
from ...registry import UserError
from .files import find_images, subfolders
from .raw import RawTask, name_few
from .table import Tables, from_datasets
from .text_tables import ENDINGS as TEXT_ENDINGS
from .text_tables import read_text_table

FILE_ENDINGS = (*TEXT_ENDINGS, ".parquet", ".jsonl", ".json")
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_SAVED = ("dataset_dict.json", "state.json")


def load_table(config: DataConfig, class_names: list[str] | None = None) -> RawTask:
    """Load a table file, a folder of tables, or a hub data set.

    Args:
        config: What to load.
        class_names: The classes in the order of their labels; the table's own when empty.
    """
    path = Path(config.name).expanduser()
    try:
        tables = _read(path, config)
    except UserError:
        raise
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
    raw = from_datasets(tables, config, name=name, class_names=class_names)
    raw.info = {"from": where, "revision": config.revision, **raw.info}
    return raw


def is_table_folder(folder: Path) -> bool:
    """Return whether a folder holds tables: parquet files, a saved data set, or images with metadata files."""
    saved = any((folder / name).is_file() for name in _SAVED)
    return saved or bool(_metadata_files(folder)) or next(folder.rglob("*.parquet"), None) is not None


def _read(path: Path, config: DataConfig) -> Tables:
    import datasets

    if path.is_file():
        return _read_file(path)
    if not path.is_dir():
        return Tables(dict(datasets.load_dataset(config.name, config.config, revision=config.revision)))
    if any((path / name).is_file() for name in _SAVED):
        saved = datasets.load_from_disk(str(path))
        splits = dict(saved) if isinstance(saved, dict) else {"train": saved}
    elif files := _metadata_files(path):
        return _read_metadata(path, files)
    else:
        splits = dict(datasets.load_dataset(str(path), config.config))
    return Tables(splits, dict.fromkeys(splits, path))


def _read_file(path: Path) -> Tables:
    import datasets

    ending, notes = path.suffix.lower(), []
    if ending in TEXT_ENDINGS:
        table, notes = read_text_table(path)
    else:
        kind = "parquet" if ending == ".parquet" else "json"
        [table] = datasets.load_dataset(kind, data_files={"train": str(path)}).values()
    return Tables({"train": table}, {"train": path.parent}, notes)


def _metadata_files(folder: Path) -> dict[str, Path]:
    """Return the metadata files in the layout of datasets' ImageFolder: the folder's own, or those of its splits."""
    places = {"train": folder} if _metadata(folder) else subfolders(folder)
    return {name: file for name, place in places.items() if (file := _metadata(place))}


def _metadata(folder: Path) -> Path | None:
    return next((folder / name for name in _METADATA if (folder / name).is_file()), None)


def _read_metadata(folder: Path, files: dict[str, Path]) -> Tables:
    """Read the metadata files of a folder's splits; images that they do not name are counted in the notes."""
    tables = Tables({}, {name: file.parent for name, file in files.items()})
    for name, file in files.items():
        read = _read_file(file)
        [table] = read.splits.values()
        tables.splits[name] = table
        tables.notes += read.notes
        column = next((own for own in table.column_names if own.lower() == "file_name"), None)
        if column is not None:
            named = {os.path.normpath(file.parent / str(place)) for place in table[column]}
            others = [path for path in find_images(file.parent).images if os.path.normpath(path) not in named]
            if others:
                such = os.path.relpath(others[0], folder)
                tables.notes.append(
                    f"not used: {len(others)} images that {file.name} does not name (such as {such!r})"
                )
    if others := [
        name for name in subfolders(folder) if name not in files and folder not in tables.roots.values()
    ]:
        tables.notes.append(f"not used: folder {name_few(others)}, without {_METADATA[0]}")
    return tables
