"""A local source with another last layer, which was distilled from the answers of a service: a folder of two files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from ..files import Damaged, load_state, read_text, save_state, write_json
from ..labels.space import LabelSpace
from ..registry import UserError
from .base import Source

CONFIG, HEAD = "config.json", "head.safetensors"


def with_head(source: Source, weight: Tensor, bias: Tensor, labels: Sequence[str], name: str) -> Source:
    """Return a source that scores other labels on the features of a closed label set's network.

    Args:
        source: Ends in a linear layer.
        weight: (S, D).
        bias: (S,).
        labels: The S new labels.
        name: Of the new source.
    """
    head = nn.Linear(weight.shape[1], weight.shape[0])
    head.load_state_dict({"weight": weight.detach().float(), "bias": bias.detach().float()})
    network = nn.Sequential(source.headless_network(), head)
    return Source(
        network, LabelSpace(tuple(labels)), source.preprocessing, name, source.revision, source.precision
    )


def save_distilled(
    folder: Path, source: Source, weight: Tensor, bias: Tensor, labels: Sequence[str], teacher: str
) -> str:
    """Write the folder of such a source; return the source's name.

    Args:
        folder: Made where it is missing.
        source, weight, bias, labels: See ``with_head``.
        teacher: The service that was asked, for people.
    """
    save_state(folder / HEAD, {"weight": weight, "bias": bias}, {})
    values = {"source": source.name, "revision": source.revision, "options": source.options}
    write_json(folder / CONFIG, {**values, "labels": list(labels), "teacher": teacher})
    return f"distilled:{folder}"


def load_distilled(
    model: str,
    *,
    name: str,
    canvas,
    precision: str,
    revision: str | None,
    local_files_only: bool = False,
    **_,
) -> Source:
    """Load ``distilled:FOLDER``."""
    from .load import load_source

    folder = Path(model)
    try:
        values = json.loads(read_text(folder / CONFIG))
        tensors, _values = load_state(folder / HEAD)
        source, labels, weight, bias = values["source"], values["labels"], tensors["weight"], tensors["bias"]
        options = values.get("options", {})
        fits = weight.ndim == 2 and len(labels) == len(weight) and bias.shape == weight.shape[:1]
        if not fits or not isinstance(source, str) or not isinstance(options, dict):
            raise ValueError("its files do not fit together")
    except (OSError, Damaged, ValueError, KeyError, TypeError) as error:
        raise UserError(f"source {name!r}: {str(folder)!r} is no distilled source: {error}") from error
    if revision:
        raise UserError(f"source.revision: {name!r} is a folder, which has no revisions")
    inner = load_source(
        source,
        canvas=canvas,
        precision=precision,
        revision=values.get("revision"),
        local_files_only=local_files_only,
        **options,
    )
    if inner.num_features != weight.shape[1]:
        raise UserError(
            f"source {name!r}: its head takes {weight.shape[1]} features, and {source!r} gives {inner.num_features}"
        )
    return with_head(inner, weight, bias, labels, name)
