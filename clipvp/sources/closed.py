"""Classifiers with a closed label set, from timm and transformers."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from ..labels import LabelSpace, unique_names
from ..registry import UserError, nearest
from .base import Source
from .hub import hub_errors, offline_if, quiet_transformers
from .preprocessing import hf_preprocessing, timm_preprocessing


def imagenet_names(infer_from, num_classes: int) -> tuple[str, ...]:
    """Return readable names for a timm model's logits; numbered ones where timm knows none."""
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

    overlay, repository = {}, model
    if model.startswith("local-dir:"):
        folder = Path(model.removeprefix("local-dir:"))
        if not (folder / "config.json").is_file():
            raise UserError(f"source {name!r}: {str(folder)!r} holds no config.json of a timm model")
    elif model.startswith("hf-hub:"):
        model = f"{model}@{revision}" if revision else model
    else:
        architecture, _, tag = model.partition(".")
        if not timm.is_model(architecture):
            raise UserError(
                f"source {name!r}: timm has no {architecture!r}; {_few(architecture, timm.list_models())}"
            )
        tags = timm.list_pretrained(f"{architecture}.*")
        if tag and model not in tags:
            raise UserError(
                f"source {name!r}: {architecture!r} has no weights {tag!r}; {nearest(model, tags)}"
            )
        if not tags:
            raise UserError(f"source {name!r}: timm has no pretrained weights for {architecture!r}")
        known = timm.get_pretrained_cfg(model)
        repository = known.hf_hub_id or f"timm/{model}"
        if repository.endswith("/"):
            repository += f"{architecture}.{known.tag}" if known.tag else architecture
        if revision:
            overlay = {"pretrained_cfg_overlay": {"hf_hub_id": f"{repository}@{revision}"}}
    with hub_errors(name, repository), offline_if(local_files_only):
        network = _create_timm(timm, model, canvas, overlay)
    preprocessing = timm_preprocessing(timm.data.resolve_model_data_config(network)).at(canvas)
    labels = LabelSpace(imagenet_names(network, network.num_classes))
    return Source(network, labels, preprocessing, name, revision, precision)


def _create_timm(timm, model: str, canvas, overlay: dict) -> nn.Module:
    """Build the model; an architecture that fixes its input size at construction is told the canvas."""
    if canvas is None:
        return timm.create_model(model, pretrained=True, **overlay)
    try:
        return timm.create_model(model, pretrained=True, img_size=tuple(canvas), **overlay)
    except TypeError:  # a convolutional network: it takes any size, and no img_size
        return timm.create_model(model, pretrained=True, **overlay)


def _few(value: str, allowed: list[str]) -> str:
    import difflib

    close = difflib.get_close_matches(value, allowed, n=5, cutoff=0.5)
    return f"the nearest: {', '.join(close)}" if close else f"timm.list_models() shows all {len(allowed)}"


class _Logits(nn.Module):
    """A transformers classifier as a module from normalised pixels to logits."""

    def __init__(self, model: nn.Module, interpolate: bool, flip_channels: bool):
        super().__init__()
        self.model = model
        self.flip_channels = flip_channels
        self.options = {"interpolate_pos_encoding": True} if interpolate else {}

    def forward(self, pixels: Tensor) -> Tensor:
        pixels = pixels.flip(1) if self.flip_channels else pixels
        return self.model(pixel_values=pixels, **self.options).logits


def load_hf_closed(model: str, config, *, name: str, canvas, precision: str, **hub):
    """Load a transformers image classifier; ``config`` is its configuration, ``hub`` revision and the like."""
    import inspect

    from transformers import AutoImageProcessor, AutoModelForImageClassification

    with hub_errors(name, model), quiet_transformers():
        processor = AutoImageProcessor.from_pretrained(model, **hub).to_dict()
        network = AutoModelForImageClassification.from_pretrained(model, **hub)
    preprocessing = hf_preprocessing(processor).at(canvas)
    takes = "interpolate_pos_encoding" in inspect.signature(network.forward).parameters
    names = [str(config.id2label[i]) for i in range(config.num_labels)]
    lemmas = [text.split(",")[0].strip() for text in names]
    labels = LabelSpace(unique_names(lemmas, [f"{text}, {i}" for i, text in enumerate(names)]))
    module = _Logits(network, takes and canvas is not None, bool(processor.get("do_flip_channel_order")))
    return Source(module, labels, preprocessing, name, hub.get("revision"), precision)


def load_hf(model: str, *, name: str, revision: str | None, local_files_only: bool, **options):
    """Load ``hf:ORG/NAME`` or ``hf:FOLDER`` with transformers: an image classifier, or a CLIP of any kind."""
    from transformers import AutoConfig

    if not model or (model[0] in "./~" and not Path(model).is_dir()):
        raise UserError(f"source {name!r}: there is no folder {model!r}; hf: takes a folder or ORG/NAME")
    hub = {"revision": revision, "local_files_only": local_files_only}
    with hub_errors(name, model):
        config = AutoConfig.from_pretrained(model, **hub)
    if hasattr(config, "text_config") and hasattr(config, "vision_config"):
        from .clip import load_hf_clip

        return load_hf_clip(model, name=name, **options, **hub)
    kinds = config.architectures or ["unknown"]
    if not any(kind.endswith("ForImageClassification") for kind in kinds):
        raise UserError(
            f"source {name!r} holds {', '.join(kinds)}: neither an image classifier (...ForImageClassification) "
            "nor a model with an image and a text tower"
        )
    return load_hf_closed(
        model, config, name=name, canvas=options["canvas"], precision=options["precision"], **hub
    )
