"""CLIPs from open_clip: by architecture and tag, from the hub, or from a folder."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..cpu import import_open_clip
from ..images import Resize
from ..registry import UserError, nearest
from .base import Preprocessing
from .clip import ClipParts, ClipSource, ImageTower, clip_source
from .hub import fetch_open_clip, hub_access, quiet_open_clip
from .origin import is_weight_file

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "*.model")


def load_open_clip(
    model: str,
    *,
    name: str,
    canvas,
    labels,
    precision: str,
    revision: str | None,
    local_files_only: bool,
    text_tower: bool = True,
) -> ClipSource:
    """Load ``open_clip:MODEL/TAG``, ``open_clip:MODEL/FILE``, ``open_clip:hf-hub:ORG/NAME`` or
    ``open_clip:local-dir:FOLDER``.

    FILE is what open_clip itself takes as ``pretrained``: a state dict, or a checkpoint of its training. As there,
    its preprocessing is that of the first CLIP; a folder with open_clip_config.json can name another.
    """
    open_clip = import_open_clip()
    weights = folder = None  # ``weights`` is a tag or a file
    if model.startswith("hf-hub:"):
        repository = model.removeprefix("hf-hub:")
        with hub_access(name, [repository], revision, local_files_only):
            folder = Path(fetch_open_clip(repository, revision))
        repositories = []
    elif model.startswith("local-dir:"):
        folder, repositories = Path(model.removeprefix("local-dir:")), []
        if folder.is_file():
            raise UserError(
                f"source {name!r}: {str(folder)!r} is a file; name it with its architecture, such as "
                f"open_clip:ViT-B-32/{folder}"
            )
    else:
        model, weights = _known(open_clip, model, name)
        if revision:
            raise UserError(
                f"source.revision: {name!r} names its weights by tag or file; use open_clip:hf-hub:ORG/NAME"
            )
        known = open_clip.get_pretrained_cfg(model, weights)  # empty for a file
        hub_file = known.get("hf_hub", "")  # ORG/NAME/ or ORG/NAME/FILE
        repositories = ["/".join(hub_file.split("/")[:2])] if hub_file else []
    config = _folder_config(folder, name) if folder else open_clip.get_model_config(model)
    text, own_size = config["text_cfg"], config["vision_cfg"].get("image_size", 224)
    own_canvas = (own_size, own_size) if isinstance(own_size, int) else tuple(own_size)
    image_size = None if canvas is None or tuple(canvas) == own_canvas else tuple(canvas)
    model = f"local-dir:{folder}" if folder else model
    own_tokenizer = folder is not None and any(
        found for pattern in _TOKENIZER_FILES for found in folder.glob(pattern)
    )
    # A text tower from transformers, or its tokenizer, may be in a repository of its own.
    others = [text.get("hf_model_name"), None if own_tokenizer else text.get("hf_tokenizer_name")]
    repositories += [other for other in dict.fromkeys(others) if other and other not in repositories]
    with hub_access(name, repositories, revision, local_files_only), quiet_open_clip():
        if isinstance(config["vision_cfg"].get("layers"), list):  # open_clip's mark of CLIP's own ResNets
            network = _create(open_clip, model, weights, None).eval()
            if image_size is not None:
                _resize_attention_pool(network.visual.attnpool, image_size, name)
        else:
            network = _create(open_clip, model, weights, image_size).eval()
        if not text_tower:
            tokenizer = None
        elif folder and not own_tokenizer:
            tokenizer = _tokenizer(open_clip, text)
        else:
            tokenizer = open_clip.get_tokenizer(model)
    parts = ClipParts(
        image_tower=ImageTower(network.visual, lambda visual, pixels: _pooled(visual(pixels))),
        encode_text=lambda texts: network.encode_text(tokenizer(texts)),
        too_long=lambda texts: _too_long(tokenizer, texts),
        weights=[network],
        scale=float(network.logit_scale.detach().exp()),
        bias=float(network.logit_bias.detach()) if getattr(network, "logit_bias", None) is not None else 0.0,
        preprocessing=_preprocessing(network.visual.preprocess_cfg, name).at(canvas),
    )
    options = {"precision": precision, "revision": revision, "text_tower": text_tower}
    return clip_source(parts, name=name, labels=labels(), **options)


def _known(open_clip, model: str, name: str) -> tuple[str, str]:
    """Return architecture and tag or file of ``MODEL/TAG`` or ``MODEL/FILE``.

    Raises:
        UserError: open_clip does not have them, there is no such file, or weights and architecture differ in the
            activation function (QuickGELU or GELU).
    """
    architecture, _, weights = model.partition("/")
    config = open_clip.get_model_config(architecture)
    if config is None:
        if Path(model).expanduser().is_file():
            raise UserError(
                f"source {name!r}: name the file with its architecture, such as open_clip:ViT-B-32/{model}"
            )
        raise UserError(
            f"source {name!r}: open_clip has no {architecture!r}; {nearest(architecture, open_clip.list_models())}"
        )
    other = architecture.removesuffix("-quickgelu")
    other = f"{architecture}-quickgelu" if other == architecture else other
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    is_file = is_weight_file(weights)
    if is_file:
        if not Path(weights).is_file():
            raise UserError(f"source {name!r}: there is no file {weights!r}")
        wanted = _trained_with_quick_gelu(open_clip, Path(weights))
    else:
        settings = open_clip.get_pretrained_cfg(architecture if weights in tags else other, weights)
        wanted = bool(settings.get("quick_gelu", False)) if settings else None
    computed = bool(config.get("quick_gelu", False))
    # Without another config the model can be built in one way only, which is the way the weights were trained.
    if wanted is not None and wanted != computed and open_clip.get_model_config(other):
        raise UserError(
            f"source {name!r}: the weights {weights!r} were trained {'with' if wanted else 'without'} QuickGELU, "
            f"and {architecture!r} computes {'with' if computed else 'without'} it; use open_clip:{other}/{weights}"
        )
    if not is_file and weights not in tags:
        raise UserError(
            f"source {name!r}: {architecture!r} has no weights {weights!r}; {nearest(weights, tags)}"
        )
    return architecture, weights


def _trained_with_quick_gelu(open_clip, checkpoint: Path) -> bool | None:
    """Return whether a checkpoint was trained with QuickGELU, None where it is unknown.

    open_clip's training writes RUN/params.txt, one "key: value" a line, beside RUN/checkpoints/epoch_N.pt.
    """
    try:
        text = (checkpoint.resolve().parents[1] / "params.txt").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, IndexError):
        return None
    values = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    config = open_clip.get_model_config(values.get("model", ""))
    if config is None:
        return None
    return values.get("force_quick_gelu") == "True" or bool(config.get("quick_gelu", False))


def _create(open_clip, model: str, weights: str | None, image_size: tuple[int, int] | None) -> nn.Module:
    """Build a model with its weights: ``model`` by name and ``weights`` by tag or file, or ``local-dir:FOLDER``."""
    try:
        return open_clip.create_model(model, weights, force_image_size=image_size, require_pretrained=True)
    except (AttributeError, KeyError, StopIteration) as error:
        raise RuntimeError("its weight file holds no state dict of an open_clip model") from error


def _resize_attention_pool(pool: nn.Module, canvas: tuple[int, int], name: str) -> None:
    """Give the attention pool of CLIP's ResNet the position embedding of another canvas (H, W).

    It is resized as open_clip resizes that of a vision transformer; there it is not resized at all.
    """
    first, grid = pool.positional_embedding.detach().split([1, len(pool.positional_embedding) - 1])
    side = math.isqrt(len(grid))
    size = [(length + 1) // 2 // 16 for length in canvas]  # a stride of 2 with padding, then poolings
    if 0 in size:
        height, width = canvas
        raise UserError(f"source.canvas: {name!r} does not take {height}x{width} pixels: it needs 31 a side")
    grid = F.interpolate(grid.T.reshape(1, -1, side, side), size, mode="bicubic", antialias=True)
    pool.positional_embedding = nn.Parameter(torch.cat([first, grid.flatten(2)[0].T]))


def _folder_config(folder: Path, name: str) -> dict[str, Any]:
    """Return the architecture ("model_cfg") from a folder's open_clip_config.json."""
    path = folder / "open_clip_config.json"
    if not path.is_file():
        raise UserError(f"source {name!r}: {str(folder)!r} has no open_clip_config.json")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"source {name!r}: open_clip_config.json is damaged: {error}") from error
    config = config.get("model_cfg") if isinstance(config, dict) else None
    for tower in ("text", "vision"):
        if not isinstance(config, dict) or not isinstance(config.get(f"{tower}_cfg"), dict):
            raise UserError(
                f"source {name!r}: its open_clip_config.json describes no {tower} tower, so it is not a CLIP"
            )
    return config


def _tokenizer(open_clip, text: dict[str, Any]):
    """Return the tokenizer for a folder without tokenizer files: the one the config names, else open_clip's own."""
    options = {"context_length": text.get("context_length", 77), **text.get("tokenizer_kwargs", {})}
    if not text.get("hf_tokenizer_name"):
        return open_clip.tokenizer.SimpleTokenizer(**options)
    mode = text.get("tokenizer_mode")
    return open_clip.tokenizer.HFTokenizer(text["hf_tokenizer_name"], tokenizer_mode=mode, **options)


def _preprocessing(config: dict, name: str) -> Preprocessing:
    rules = {"shortest": "crop", "squash": "squash"}
    mode = config.get("resize_mode", "shortest")
    if mode not in rules:
        raise UserError(f"source {name!r}: its preprocessing resizes by {mode!r}; {nearest(mode, rules)}")
    size = config["size"]
    size = (size, size) if isinstance(size, int) else tuple(size)
    # As in open_clip: everything except bilinear (such as "random", for training) is bicubic.
    interpolation = "bilinear" if config.get("interpolation") == "bilinear" else "bicubic"
    resize = Resize(size, rules[mode], 1.0, interpolation)
    return Preprocessing(resize, tuple(config["mean"]), tuple(config["std"]))


def _pooled(output) -> Tensor:
    return output[0] if isinstance(output, tuple) else output  # CoCa's tower also returns its tokens


def _too_long(tokenizer, texts: list[str]) -> list[str]:
    """Return the texts that the model's context cuts off: those with more tokens in a longer context."""
    context = tokenizer.context_length
    empty = tokenizer([""], context + 8)[0]
    padding = empty.mode().values
    longer, cut = tokenizer(texts, context + 8), tokenizer(texts, context)
    return [
        text
        for text, more, fewer in zip(texts, longer, cut, strict=True)
        if not torch.equal(more[more != padding], fewer[fewer != padding])
    ]
