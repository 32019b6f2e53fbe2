"""Classifiers with a closed label set, from timm."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ..files import read_text
from ..labels.space import LabelSpace, unique_names
from ..registry import UserError, nearest
from .base import Source
from .channels import for_rgb
from .hub import hub_access
from .preprocessing import timm_preprocessing


def imagenet_names(infer_from, num_classes: int) -> tuple[str, ...]:
    """Return a readable name for each logit of a timm model; "label 0", "label 1", ... if timm has no names."""
    import timm.data

    config = infer_from.pretrained_cfg
    names = config.get("label_names")
    if names:
        return unique_names(list(names), [str(i) for i in range(len(names))])
    subset = timm.data.infer_imagenet_subset(infer_from)
    if subset is None:
        return tuple(f"label {i}" for i in range(num_classes))
    info = timm.data.ImageNetInfo(subset)
    lemmas = [text.split(",")[0].strip() for text in info.label_descriptions()]
    meanings = [text.partition(": ")[2].split(",")[0][:60] for text in info.label_descriptions(detailed=True)]
    return unique_names(lemmas, meanings)


def load_timm(
    model: str, *, name: str, canvas, precision: str, revision: str | None, local_files_only: bool, **_
):
    """Load ``timm:ARCHITECTURE.TAG``, ``timm:hf-hub:ORG/NAME`` or ``timm:local-dir:FOLDER``."""
    import timm
    import timm.data

    options: dict[str, Any] = {}
    folder = repository = None
    if model.startswith("local-dir:"):
        folder = Path(model.removeprefix("local-dir:"))
        if folder.is_file():
            raise UserError(f"source {name!r}: {str(folder)!r} is a file; timm:local-dir: takes a folder")
        if not (folder / "config.json").is_file():
            raise UserError(f"source {name!r}: {str(folder)!r} has no config.json of a timm model")
    elif model.startswith("hf-hub:"):
        repository = model.removeprefix("hf-hub:").partition("@")[0]
        model = f"{model}@{revision}" if revision else model
    else:
        architecture, _, tag = model.partition(".")
        if not timm.is_model(architecture):
            raise UserError(
                f"source {name!r}: timm has no {architecture!r}; {nearest(architecture, timm.list_models())}"
            )
        tags = timm.list_pretrained(f"{architecture}.*")
        if tag and model not in tags:
            raise UserError(
                f"source {name!r}: {architecture!r} has no weights {tag!r}; {nearest(model, tags)}"
            )
        if not tags:
            raise UserError(f"source {name!r}: timm has no pretrained weights for {architecture!r}")
        known = timm.get_pretrained_cfg(model)
        repository = known.hf_hub_id  # None for a few old weights that are not on the hub
        if repository and repository.endswith("/"):
            repository += f"{architecture}.{known.tag}" if known.tag else architecture
        if revision:
            options = {"pretrained_cfg_overlay": {"hf_hub_id": f"{repository}@{revision}"}}
    with hub_access(name, [repository] if repository else [], revision, local_files_only):
        try:
            network = create_timm(model, canvas, pretrained=True, **options)
        except AttributeError:
            saved = _saved_by_transformers(model, folder, repository, revision)
            if saved is None:
                raise
            network = create_timm(saved.pop("architecture"), canvas, pretrained=True, **saved)
    config = timm.data.resolve_model_data_config(network)
    labels = LabelSpace(imagenet_names(network, network.num_classes))
    network = for_rgb(network, config["input_size"][0], name)
    preprocessing = timm_preprocessing(config).at(canvas)
    return Source(network, labels, preprocessing, name, revision, precision)


def _saved_by_transformers(
    model: str, folder: Path | None, repository: str | None, revision: str | None
) -> dict[str, Any] | None:
    """Return what ``timm.create_model`` must be told of a model that transformers saved: its architecture and config.

    Its config.json says "model_args": null, which timm does not read. None for any other model.
    """
    if model.startswith("local-dir:"):
        path, where = folder / "config.json", {"file": str(folder), "source": "local-dir"}
    elif model.startswith("hf-hub:"):
        from huggingface_hub import hf_hub_download

        path = Path(hf_hub_download(repository, "config.json", revision=revision))
        where = {"hf_hub_id": model.removeprefix("hf-hub:"), "source": "hf-hub"}
    else:
        return None
    config = json.loads(read_text(path))
    if not isinstance(config, dict) or config.get("model_args", {}) is not None:
        return None
    own = {key: config[key] for key in ("num_classes", "label_names") if key in config}
    return {
        "architecture": config["architecture"],
        "pretrained_cfg": {**config["pretrained_cfg"], **own, **where},
    }


def create_timm(model: str, canvas: Sequence[int] | None, **options: Any) -> nn.Module:
    """Build a timm model; architectures that fix their input size when they are built get the canvas (H, W)."""
    import timm

    if canvas is None:
        return timm.create_model(model, **options)
    try:
        return timm.create_model(model, img_size=tuple(canvas), **options)
    except TypeError:  # a convolutional network takes any size and has no argument img_size
        return timm.create_model(model, **options)
    except (RuntimeError, AssertionError) as error:
        size = "x".join(map(str, canvas))
        raise RuntimeError(f"at a canvas of {size} pixels: {str(error) or type(error).__name__}") from error
