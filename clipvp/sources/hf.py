"""Sources from transformers: image classifiers, and models with an image and a text tower (CLIP, SigLIP, ...)."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..labels.space import LabelSpace, unique_names
from ..registry import UserError
from .base import Source
from .channels import for_rgb
from .clip import ClipParts, ClipSource, ImageTower, clip_source
from .closed import load_timm
from .hub import hub_access, quiet_transformers
from .preprocessing import hf_preprocessing


def load_hf(
    model: str,
    *,
    name: str,
    canvas,
    labels,
    precision: str,
    revision: str | None,
    local_files_only: bool,
    text_tower: bool = True,
) -> Source:
    """Load ``hf:ORG/NAME`` or ``hf:FOLDER``: an image classifier, or a model with an image and a text tower.

    A model of timm, which transformers only wraps, is loaded as ``timm:hf-hub:`` and ``timm:local-dir:`` load it.
    """
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        AutoModel,
        AutoModelForImageClassification,
        AutoTokenizer,
    )

    options = {"name": name, "precision": precision, "revision": revision}
    is_folder = Path(model).is_dir()
    if not model or (model[0] in "./~" and not is_folder):
        raise UserError(f"source {name!r}: there is no folder {model!r}; hf: takes a folder or ORG/NAME")
    repositories = [] if is_folder else [model]
    with hub_access(name, repositories, revision, local_files_only) as offline, quiet_transformers():
        # With None in the place of False, transformers asks whether to run code of the repository, and waits.
        hub = {"revision": revision, "local_files_only": offline, "trust_remote_code": False}
        config = AutoConfig.from_pretrained(model, **hub)
        if config.model_type == "timm_wrapper":
            timm_name = f"{'local-dir' if is_folder else 'hf-hub'}:{model}"
            return load_timm(timm_name, canvas=canvas, local_files_only=offline, **options)
        is_clip = _is_clip(config, name)
        processor = AutoImageProcessor.from_pretrained(model, **hub).to_dict()
        tokenizer = AutoTokenizer.from_pretrained(model, **hub) if is_clip and text_tower else None
        if tokenizer is not None and _is_empty(tokenizer):
            raise UserError(f"source {name!r}: the files of its tokenizer are missing")
        network = _load_complete(AutoModel if is_clip else AutoModelForImageClassification, model, name, hub)
    if is_clip:
        return _clip(network, tokenizer, processor, canvas, labels(), options)
    return _classifier(network, processor, canvas, options)


def _is_clip(config, name: str) -> bool:
    """Return whether a configuration is that of a CLIP (True) or of an image classifier (False).

    Raises:
        UserError: It is neither, or a CLIP without a fixed canvas.
    """
    from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, MODEL_MAPPING

    classes = config.architectures or [type(config).__name__]
    classifiers = MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING.get(type(config), ())  # one class, or several
    classifiers = classifiers if isinstance(classifiers, tuple) else (classifiers,)
    if {kind.__name__ for kind in classifiers} & set(classes):
        return False
    network = MODEL_MAPPING.get(type(config), None)
    if not (hasattr(network, "get_image_features") and hasattr(network, "get_text_features")):
        raise UserError(
            f"source {name!r} holds {', '.join(classes)}: neither an image classifier that transformers knows "
            "(...ForImageClassification) nor a model with an image and a text tower"
        )
    if "spatial_shapes" in inspect.signature(network.get_image_features).parameters:
        raise UserError(
            f"source {name!r} takes images of any shape as a list of patches (NaFlex) and has no canvas; use a "
            "model of fixed size, such as hf:google/siglip2-base-patch16-224"
        )
    return True


def _is_empty(tokenizer) -> bool:
    """Return whether a tokenizer has no words; transformers creates such a one if its files are missing."""
    tokens = tokenizer("photo", add_special_tokens=False)["input_ids"]
    return all(token == tokenizer.unk_token_id for token in tokens)


def _load_complete(auto_class, model: str, name: str, hub: dict[str, Any]) -> nn.Module:
    """Load a model; raise ``UserError`` if its files lack weights, which transformers would initialise at random."""
    network, report = auto_class.from_pretrained(model, dtype=torch.float32, output_loading_info=True, **hub)
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(
            f"source {name!r}: its files lack {len(missing)} weights of {type(network).__name__}, "
            f"the first: {', '.join(missing[:3])}"
        )
    return network.eval()


class _Logits(nn.Module):
    """A transformers classifier as a module from normalised pixels to logits."""

    def __init__(self, model: nn.Module, interpolate: bool, flip_channels: bool):
        super().__init__()
        self.model = model
        self.flip_channels = flip_channels
        self.options = {"interpolate_pos_encoding": True} if interpolate else {}

    def forward(self, pixels: Tensor) -> Tensor:
        pixels = pixels.flip(1) if self.flip_channels else pixels
        output = self.model(pixel_values=pixels, **self.options)
        return output.logits if "logits" in output else output[0]  # PPLCNet's have another name


def _channels(config) -> int:
    """Return the number of input channels of a model; 3 where its configuration does not say it."""
    return getattr(getattr(config, "vision_config", config), "num_channels", 3)


def _interpolates(method, canvas) -> bool:
    """Return whether a model must be told to interpolate its position embedding to the canvas."""
    return canvas is not None and "interpolate_pos_encoding" in inspect.signature(method).parameters


def _classifier(network: nn.Module, processor: dict, canvas, options: dict[str, Any]) -> Source:
    known = network.config.id2label or {}
    names = [str(known.get(i, f"LABEL_{i}")) for i in range(network.config.num_labels)]
    lemmas = [text.split(",")[0].strip() for text in names]
    labels = LabelSpace(unique_names(lemmas, [f"{text}, {i}" for i, text in enumerate(names)]))
    interpolate = _interpolates(network.forward, canvas)
    module = _Logits(network, interpolate, bool(processor.get("do_flip_channel_order")))
    module = for_rgb(module, _channels(network.config), options["name"])
    return Source(module, labels, hf_preprocessing(processor).at(canvas), **options)


def _clip(
    network: nn.Module, tokenizer, processor: dict, canvas, labels: LabelSpace, options: dict[str, Any]
) -> ClipSource:
    arguments = (
        {"interpolate_pos_encoding": True} if _interpolates(network.get_image_features, canvas) else {}
    )
    # SigLIP is trained on texts padded to the full length; the other models get an attention mask.
    padding = "max_length" if network.config.model_type.startswith("siglip") else True
    bias = getattr(network, "logit_bias", None)

    def context() -> int:
        most = tokenizer.model_max_length
        return min(most, getattr(network.config.text_config, "max_position_embeddings", most))

    def encode_text(texts: list[str]) -> Tensor:
        tokens = tokenizer(texts, padding=padding, max_length=context(), truncation=True, return_tensors="pt")
        return _pooled(network.get_text_features(**tokens))

    def too_long(texts: list[str]) -> list[str]:
        with quiet_transformers():  # a text that is too long is only a warning there
            lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
        return [text for text, length in zip(texts, lengths, strict=True) if length > context()]

    def drop_text() -> None:
        if hasattr(network, "text_model"):
            del network.text_model

    image_tower = ImageTower(
        network, lambda model, pixels: _pooled(model.get_image_features(pixels, **arguments))
    )
    parts = ClipParts(
        image_tower=for_rgb(image_tower, _channels(network.config), options["name"]),
        encode_text=encode_text,
        too_long=too_long,
        weights=[network],
        scale=_scale(network, options["name"]),
        bias=float(bias.detach()) if bias is not None else 0.0,
        preprocessing=hf_preprocessing(processor).at(canvas),
        drop_text=drop_text,
    )
    return clip_source(parts, labels=labels, text_tower=tokenizer is not None, **options)


def _scale(network: nn.Module, name: str) -> float:
    if hasattr(network, "logit_scale"):
        return float(network.logit_scale.detach().exp())
    if hasattr(network, "temperature"):  # ALIGN
        return 1 / float(network.temperature.detach())
    raise UserError(f"source {name!r}: {type(network).__name__} has no logit_scale, so it is not a CLIP")


def _pooled(output) -> Tensor:
    return output if torch.is_tensor(output) else output.pooler_output
