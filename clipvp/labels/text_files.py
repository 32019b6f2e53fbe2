"""Files of texts: JSON, an object of class names and lists of texts, or CSV with the columns class and text."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..files import read_text
from ..registry import UserError, nearest
from .waffle import WAFFLE

_HOME = "descriptions"


def bank_names() -> list[str]:
    """Return the names of the banks that are part of the package."""
    home = files(__package__) / _HOME
    return sorted([WAFFLE, *(folder.name for folder in home.iterdir() if folder.is_dir())])


def text_files(given: str | Mapping[str, str]) -> dict[str, Path]:
    """Return the files by group; the group of a single file is the empty text."""
    if isinstance(given, Mapping):
        if not given:
            raise UserError("mapping.texts: the map is empty; give {GROUP: FILE, ...}")
        return {str(group): Path(path).expanduser() for group, path in given.items()}
    path = Path(given).expanduser()
    if given in bank_names():
        path = Path(str(files(__package__) / _HOME / given))
    if path.is_dir():
        found = {file.stem: file for file in sorted(path.iterdir()) if file.suffix in (".json", ".csv")}
        if not found:
            raise UserError(f"mapping.texts: the folder {given!r} holds no .json or .csv file")
        return found
    if path.suffix.lower() not in (".json", ".csv"):
        raise UserError(
            f"mapping.texts: {given!r} is no .json or .csv file and no folder; {nearest(given, bank_names())}"
        )
    return {"": path}


def read_texts(path: Path) -> dict[str, list[str]]:
    """Return the texts by class of one file.

    Raises:
        UserError: It cannot be read, is damaged, or has a class twice (JSON).
    """
    where = f"mapping.texts: {str(path)!r}"
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{where} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if path.suffix.lower() == ".csv":
        return _read_csv(text, where)
    try:
        value = json.loads(text, object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is damaged: {error}") from error
    if not isinstance(value, dict) or not all(
        isinstance(texts, list) and all(isinstance(text, str) for text in texts) for texts in value.values()
    ):
        raise UserError(f"{where} is not an object of class names and lists of texts")
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON whose keys differ; of equal ones the parser itself would keep the last."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the class {key!r} is there twice; put its texts into one list")
        found[key] = value
    return found


def _read_csv(text: str, where: str) -> dict[str, list[str]]:
    rows = csv.DictReader(
        io.StringIO(text.replace("\r", "\n")), strict=True
    )  # old files end lines with \r alone
    found: dict[str, list[str]] = {}
    try:
        columns = rows.fieldnames or []
        if not {"class", "text"} <= set(columns):
            raise UserError(f"{where} has the columns {', '.join(columns)}; it needs class and text")
        for row in rows:
            found.setdefault(row["class"] or "", []).append(row["text"] or "")
    except csv.Error as error:
        raise UserError(f"{where} is damaged: line {rows.reader.line_num}: {error}") from error
    return found
