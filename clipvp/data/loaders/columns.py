"""Which columns of a table hold images, labels and splits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...config.schema import DataConfig
from ...registry import UserError, nearest

if TYPE_CHECKING:
    from datasets import Dataset

# Names that count where no column has the type, in any case; a type always wins over a name.
IMAGE_COLUMNS = (
    *("image", "img", "path", "file", "file_name", "filename", "filepath", "file_path"),
    *("image_path", "img_path", "image_file", "image_name", "images"),
)
LABEL_COLUMNS = ("label", "labels", "class", "target", "class_name", "label_name", "category", "species")
SPLIT_COLUMNS = ("split", "subset", "partition")


def find_columns(table: Dataset, config: DataConfig) -> dict[str, str]:
    """Return the names of the image and the label column."""
    from datasets import ClassLabel, Image

    listed = ", ".join(f"{name} ({kind_of(feature)})" for name, feature in table.features.items())
    columns = {}
    for role, kind, usual in (("image", Image, IMAGE_COLUMNS), ("label", ClassLabel, LABEL_COLUMNS)):
        asked = getattr(config, f"{role}_column")
        typed = [name for name, feature in table.features.items() if isinstance(feature, kind)]
        named = find_name(table, usual)
        found = typed or ([named] if named is not None else [])
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


def column_values(table: Dataset, column: str) -> list[Any]:
    return table.select_columns([column]).with_format("arrow")[:].column(0).to_pylist()


def find_name(table: Dataset, usual: Sequence[str]) -> str | None:
    """Return the first usual name that a column has, in any case."""
    lower = {name.lower().strip().replace(" ", "_"): name for name in reversed(table.column_names)}
    return next((lower[name] for name in usual if name in lower), None)


def kind_of(feature: Any) -> str:
    """Return the type of a column in one word."""
    return getattr(feature, "dtype", None) if type(feature).__name__ == "Value" else type(feature).__name__
