"""CLIP: a source whose label space is made of text, from open_clip and transformers.

Both libraries are brought to one shape, ``ClipParts``; what follows, the label space, its embeddings and the
logits, is the same for all.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..images import Resize
from ..labels import LabelSpace
from ..registry import UserError, nearest
from .base import Preprocessing, Source, weights_fingerprint
from .hub import fetch_folder, hub_errors, offline_if, quiet_transformers
from .preprocessing import hf_preprocessing
from .text import text_embeddings


@dataclass
class ClipParts:
    """A model with an image and a text tower.

    Args:
        image_tower: Normalised pixels (B, 3, H, W) to image features (B, D).
        encode_text: A list of n texts to text features (n, D).
        too_long: A list of texts to those that exceed the text tower's context.
        weights: The modules whose weights decide features and embeddings.
        scale: Factor of the cosine in the logits, exp(logit_scale).
        bias: What is added to the logits (SigLIP), else 0.
        preprocessing: The model's own.
    """

    image_tower: nn.Module
    encode_text: Callable[[list[str]], Tensor]
    too_long: Callable[[list[str]], list[str]]
    weights: Sequence[nn.Module]
    scale: float
    bias: float
    preprocessing: Preprocessing


class ClipSource(Source):
    """A source that scores images against texts: ``scale * cos(image, text) + bias``.

    Args:
        parts: The model.
        labels: The label space of S texts.
        text_features: (S, D), L2-normalised.
        options: As for ``Source``.

    Source: CLIP (arXiv 2103.00020), figure 3; SigLIP (arXiv 2303.15343) for the bias.
    """

    def __init__(self, parts: ClipParts, labels: LabelSpace, text_features: Tensor, **options):
        super().__init__(parts.image_tower, labels, parts.preprocessing, **options)
        self.scale, self.bias = parts.scale, parts.bias
        self.register_buffer("text_features", text_features, persistent=False)

    def logits(self, output: Tensor) -> Tensor:
        return self.scale * F.normalize(output, dim=1) @ self.text_features.T + self.bias

    def features(self, pixels: Tensor) -> Tensor:
        """Return image features (B, D) float32, not normalised."""
        return self.run(self.network, self.normalize(pixels))

    @property
    def num_features(self) -> int:
        return self.text_features.shape[1]

    def headless_network(self) -> nn.Module:
        return copy.deepcopy(self.network)


def clip_source(
    parts: ClipParts,
    *,
    name: str,
    labels: LabelSpace,
    precision: str,
    revision: str | None,
) -> ClipSource:
    """Return the source of a model for a label space, its texts embedded.

    Raises:
        UserError: A text is longer than the model's context.
    """
    long = parts.too_long(list(labels.names))
    if long:
        raise UserError(
            f"source {name!r}: {len(long)} of {len(labels)} texts are longer than the model's context, "
            f"the first: {long[0]!r}; shorten the class name or leave out the template"
        )
    fingerprint = weights_fingerprint(*parts.weights)
    key = {"model": name, "revision": revision, "weights": fingerprint, "precision": "fp32"}
    embeddings = text_embeddings(parts.encode_text, labels.names, key)
    return ClipSource(
        parts, labels, embeddings, name=name, revision=revision, precision=precision, fingerprint=fingerprint
    )


class _ImageTower(nn.Module):
    """One method of a two-tower model as a module of the image tower's own weights."""

    def __init__(self, visual: nn.Module, encode: Callable[[nn.Module, Tensor], Tensor]):
        super().__init__()
        self.visual = visual
        self.encode = encode

    def forward(self, pixels: Tensor) -> Tensor:
        return self.encode(self.visual, pixels)


def load_open_clip(model: str, *, name: str, canvas, labels, precision, revision, local_files_only, **_):
    """Load ``open_clip:MODEL/PRETRAINED``, ``open_clip:hf-hub:ORG/NAME`` or ``open_clip:local-dir:FOLDER``."""
    import open_clip

    pretrained = None
    if model.startswith("hf-hub:"):
        with hub_errors(name, model):
            folder = fetch_folder(model.removeprefix("hf-hub:"), revision, local_files_only)
        model = f"local-dir:{folder}"
    elif not model.startswith("local-dir:"):
        model, pretrained = _known_open_clip(open_clip, model, name)
        if revision:
            raise UserError(
                f"source.revision: {name!r} names its weights by tag; use open_clip:hf-hub:ORG/NAME"
            )
    if model.startswith("local-dir:"):
        _check_open_clip_folder(Path(model.removeprefix("local-dir:")), name)
    with hub_errors(name, model), offline_if(local_files_only):
        network = open_clip.create_model(
            model, pretrained, force_image_size=tuple(canvas) if canvas else None, require_pretrained=True
        ).eval()
        tokenizer = open_clip.get_tokenizer(model)
    parts = ClipParts(
        image_tower=_ImageTower(network.visual, lambda visual, pixels: visual(pixels)),
        encode_text=lambda texts: network.encode_text(tokenizer(texts)),
        too_long=lambda texts: _too_long_open_clip(tokenizer, texts),
        weights=[network],
        scale=float(network.logit_scale.detach().exp()),
        bias=float(network.logit_bias.detach()) if getattr(network, "logit_bias", None) is not None else 0.0,
        preprocessing=_open_clip_preprocessing(network.visual.preprocess_cfg, name).at(canvas),
    )
    return clip_source(parts, name=name, labels=labels(), precision=precision, revision=revision)


def _known_open_clip(open_clip, model: str, name: str) -> tuple[str, str]:
    """Return architecture and tag of ``MODEL/PRETRAINED``, held against each other."""
    architecture, _, tag = model.partition("/")
    config = open_clip.get_model_config(architecture)
    if config is None:
        known = _models(open_clip, architecture)
        raise UserError(f"source {name!r}: open_clip has no {architecture!r}; {nearest(architecture, known)}")
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if tag not in tags:
        raise UserError(f"source {name!r}: {architecture!r} has no weights {tag!r}; {nearest(tag, tags)}")
    wanted = bool(open_clip.get_pretrained_cfg(architecture, tag).get("quick_gelu", False))
    if wanted != bool(config.get("quick_gelu", False)):
        right = f"{architecture}-quickgelu" if wanted else architecture.removesuffix("-quickgelu")
        raise UserError(
            f"source {name!r}: the weights {tag!r} were trained {'with' if wanted else 'without'} QuickGELU, and "
            f"{architecture!r} computes {'without' if wanted else 'with'} it; use open_clip:{right}/{tag}"
        )
    return architecture, tag


def _models(open_clip, like: str) -> list[str]:
    """Return open_clip's architectures that begin as a name does, so that an error stays short."""
    names = open_clip.list_models()
    return [other for other in names if other.lower().startswith(like[:5].lower())] or names


def _check_open_clip_folder(folder: Path, name: str) -> None:
    config = folder / "open_clip_config.json"
    if not config.is_file():
        raise UserError(f"source {name!r}: {str(folder)!r} holds no open_clip_config.json")
    try:
        known = json.loads(config.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"source {name!r}: open_clip_config.json is damaged: {error}") from error
    if not isinstance(known, dict) or "text_cfg" not in (known.get("model_cfg") or {}):
        raise UserError(
            f"source {name!r}: its open_clip_config.json describes no text tower, so it is no CLIP"
        )


def _open_clip_preprocessing(config: dict, name: str) -> Preprocessing:
    rules = {"shortest": "crop", "squash": "squash"}
    mode = config.get("resize_mode", "shortest")
    if mode not in rules:
        raise UserError(f"source {name!r}: its preprocessing resizes by {mode!r}; {nearest(mode, rules)}")
    size = config["size"]
    size = (size, size) if isinstance(size, int) else tuple(size)
    resize = Resize(size, rules[mode], 1.0, config.get("interpolation", "bicubic"))
    return Preprocessing(resize, tuple(config["mean"]), tuple(config["std"]))


def _too_long_open_clip(tokenizer, texts: list[str]) -> list[str]:
    """Return the texts whose tokens change or go on when the context is longer."""
    context = tokenizer.context_length
    pad = tokenizer([""], context + 8)[0, -1]
    wide, narrow = tokenizer(texts, context + 8), tokenizer(texts, context)
    long = (wide[:, context:] != pad).any(1) | (wide[:, :context] != narrow).any(1)
    return [text for text, bad in zip(texts, long.tolist(), strict=True) if bad]


def load_hf_clip(model: str, *, name: str, canvas, labels, precision, **hub):
    """Load a transformers model with image and text features; ``hub`` is its revision and the like."""
    import inspect

    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    with hub_errors(name, model), quiet_transformers():
        processor = AutoImageProcessor.from_pretrained(model, **hub).to_dict()
        tokenizer = AutoTokenizer.from_pretrained(model, **hub)
        network = AutoModel.from_pretrained(model, dtype=torch.float32, **hub).eval()
    if not hasattr(network, "get_image_features") or not hasattr(network, "get_text_features"):
        raise UserError(
            f"source {name!r}: {type(network).__name__} has no image and text features, so it is no CLIP"
        )
    takes = "interpolate_pos_encoding" in inspect.signature(network.get_image_features).parameters
    options = {"interpolate_pos_encoding": True} if takes and canvas is not None else {}
    context = network.config.text_config.max_position_embeddings
    bias = getattr(network, "logit_bias", None)

    def tokens(texts: list[str], truncation: bool) -> dict:
        return tokenizer(
            texts, padding="max_length", max_length=context, truncation=truncation, return_tensors="pt"
        )

    def too_long(texts: list[str]) -> list[str]:
        lengths = [len(ids) for ids in tokenizer(texts)["input_ids"]]
        return [text for text, length in zip(texts, lengths, strict=True) if length > context]

    parts = ClipParts(
        image_tower=_ImageTower(
            network, lambda both, pixels: _pooled(both.get_image_features(pixels, **options))
        ),
        encode_text=lambda texts: _pooled(network.get_text_features(**tokens(texts, True))),
        too_long=too_long,
        weights=[network],
        scale=float(network.logit_scale.detach().exp()),
        bias=float(bias.detach()) if bias is not None else 0.0,
        preprocessing=hf_preprocessing(processor).at(canvas),
    )
    return clip_source(parts, name=name, labels=labels(), precision=precision, revision=hub.get("revision"))


def _pooled(output) -> Tensor:
    return output if torch.is_tensor(output) else output.pooler_output
