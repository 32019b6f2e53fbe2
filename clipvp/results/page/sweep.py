"""The page of a sweep: its best trial, its pictures and a table of all trials that sorts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ...files import write_text
from ..folder import PAGE, PLOTS
from ..sweep_files import BEST, read_sweep
from ..tables import CAPTIONS, percent
from .write import Cell, Column, _picture, templates

PICTURES = ("history", "importance", "slices")


def write_sweep_page(folder: Path, output: Path | None = None) -> Path:
    """Write the page of a finished sweep; return its file.

    Args:
        folder: Of the sweep.
        output: The file; report.html in the folder when None.

    Raises:
        UserError: The folder holds no finished sweep.
    """
    found, output = read_sweep(folder), output or folder / PAGE
    environment = templates()
    best = next(row for row in found["trials"] if row["number"] == found["best"])
    pictures = [folder / PLOTS / f"{name}.png" for name in PICTURES]
    page = environment.get_template("sweep.html.j2").render(
        title=f"{found['task']}: sweep of {len(found['trials'])} trials",
        figures=[
            (f"validation, {found['num_val']:,} images", percent(best["val_acc1"])),
            ("best trial", str(best["number"])),
            ("epochs of all trials", f"{sum(row['epochs'] for row in found['trials']):,}"),
        ],
        pictures=[_picture(path) | {"caption": CAPTIONS[path.stem]} for path in pictures if path.is_file()],
        columns=_columns(found),
        texts={
            "Best": yaml.safe_dump(best["params"], sort_keys=False),
            "Space": yaml.safe_dump(found["space"], sort_keys=False),
            "Config of all trials": yaml.safe_dump(found["config"], sort_keys=False, allow_unicode=True),
        },
        best=BEST,
    )
    write_text(output, page)
    return output


def _columns(found: dict[str, Any]) -> list[Column]:
    rows = found["trials"]
    columns = [
        Column("trial", [Cell(str(row["number"]), row["number"]) for row in rows]),
        Column("validation", [Cell(percent(row["val_acc1"]), row["val_acc1"]) for row in rows]),
        Column("end", [Cell(row["error"] or row["state"], row["state"]) for row in rows]),
        Column("epochs", [Cell(str(row["epochs"]), row["epochs"]) for row in rows]),
    ]
    for key in found["space"]:
        values = [row["params"].get(key) for row in rows]
        cells = [
            Cell(_text(value), value if isinstance(value, (int, float)) else _text(value)) for value in values
        ]
        columns.append(Column(key, cells))
    return columns


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
