"""CSV files and their relatives as tables whose cells are text, so that no cell is taken for another value."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING

from ...files import decode_text
from ...registry import UserError

if TYPE_CHECKING:
    from datasets import Dataset

ENDINGS = (".csv", ".tsv", ".tab")
_SEPARATORS = (",", ";", "\t", "|")


def read_text_table(path: Path) -> tuple[Dataset, list[str]]:
    """Return a text file with separators as a table of strings, and what a person should know of the reading.

    The separator is the one of comma, semicolon, tab and bar that splits the first line into most columns. The text is
    UTF-8, or UTF-16 with its mark; where it is not valid UTF-8 it is read as Windows-1252, which the notes say.

    Raises:
        UserError: The file cannot be read, is empty, or a line has more cells than the first.
    """
    import pandas
    from datasets import Dataset

    text, notes = _decode(path)
    first = next((line for line in text.splitlines() if line.strip()), "")
    if not first:
        raise UserError(f"{path} is empty")
    separator = max(_SEPARATORS, key=lambda mark: len(next(csv.reader([first], delimiter=mark))))
    try:
        frame = pandas.read_csv(
            io.StringIO(text),
            sep=separator,
            dtype=str,
            keep_default_na=False,
            skipinitialspace=True,
            index_col=False,
        )
    except (ValueError, pandas.errors.ParserError) as error:
        raise UserError(f"{path} cannot be read as a table: {' '.join(str(error).split())}") from error
    frame.columns = [str(name).strip() for name in frame.columns]
    return Dataset.from_dict({name: frame[name].tolist() for name in frame.columns}), notes


def _decode(path: Path) -> tuple[str, list[str]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        return decode_text(content), []
    except UnicodeDecodeError:
        if b"\0" in content:
            raise UserError(f"{path} is no text, or UTF-16 without its mark; save it as UTF-8") from None
        return content.decode("cp1252", "replace"), [f"{path.name} is not UTF-8; it was read as Windows-1252"]
