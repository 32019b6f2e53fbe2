"""BlackVIP's prompt: a small decoder that makes a prompt for each image from a frozen encoder's features."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..config.schema import PromptConfig
from ..files import digest
from ..registry import UserError, check_positive
from .base import VisualPrompt

_GRID, _DOUBLINGS = 7, 5  # 7 x 7 fields, doubled to 224 x 224
_LEAST_CHANNELS = 32


@dataclass
class CoordinatorConfig(PromptConfig):
    """A picture for each image, made by a decoder from a frozen encoder's features and a trained trigger.

    Args:
        encoder: A timm model with weights, such as vit_base_patch16_224.mae, or local-dir:FOLDER.
        strength: Factor of the picture, in units of the source's normalised pixels; above 0.
    """

    kind: str = "coordinator"
    encoder: str = "vit_base_patch16_224.mae"
    strength: float = 0.4

    def __post_init__(self):
        super().__post_init__()
        check_positive("prompt.strength", self.strength)
        if not self.encoder:
            raise UserError("prompt.encoder is empty; give a timm model, such as vit_base_patch16_224.mae")


class CoordinatorPrompt(VisualPrompt):
    """``pixels = clamp(x + strength * std * decoder([encoder(x), trigger]), 0, 1)`` on images of the canvas's size.

    The features (D) and the trigger are one map of 7 x 7 fields with 32 channels (more where D is 1568 or more), so
    the trigger has 1568 - D numbers. The decoder doubles it five times, each time by a transposed convolution of each
    channel and a 1 x 1 convolution, and the picture is resized to the canvas. Its norms are over the channels of one
    image, so that no image depends on its batch.

    Args:
        canvas: (H, W) in pixels, of the images too.
        encoder: See ``CoordinatorConfig``. Its weights are not saved with the prompt.
        strength: Factor of the picture.
        std: Of the source's channels, three numbers.
        seed: Draws the trigger, from U(0, 0.1), and the decoder's weights; as 0 when None.
        weights: A hash of the encoder's weights that must fit; None takes any.

    Raises:
        UserError: The encoder cannot be loaded, or has other weights.

    Source: BlackVIP (arXiv 2303.14773), section 3.1; the decoder's layers are not its code's.
    """

    kind = "coordinator"

    def __init__(
        self,
        canvas: Sequence[int],
        encoder: str,
        strength: float,
        std: Sequence[float],
        seed: int | None = None,
        weights: str | None = None,
    ):
        network, size, mean, deviation = _load(encoder)
        found = digest(dict(network.state_dict()))[:16]
        if weights not in (None, found):
            raise UserError(
                f"prompt.encoder: {encoder!r} has weights {found}, and the prompt was made for {weights}"
            )
        std = [float(value) for value in std]
        super().__init__(canvas, canvas, encoder=encoder, strength=strength, std=std, weights=found)
        # In a tuple, so that it is no module of this one: it is neither trained nor saved.
        self._encoder = (network, size)
        self._last: tuple[weakref.ref, int, Tensor] | None = None
        norm = {"encoder_mean": mean, "encoder_std": deviation, "scale": [strength * value for value in std]}
        for name, values in norm.items():
            values = torch.tensor(values, dtype=torch.float32).view(3, 1, 1)
            self.register_buffer(name, values, persistent=False)
        width = getattr(network, "head_hidden_size", None) or network.num_features  # of what it gives
        channels = max(_LEAST_CHANNELS, -(-(width + 1) // _GRID**2))
        self.trigger = nn.Parameter(torch.zeros(channels * _GRID**2 - width))
        self.decoder = _decoder(channels)
        self.draw(seed or 0)

    @classmethod
    def from_config(cls, config: CoordinatorConfig, source) -> CoordinatorPrompt:
        std = list(source.preprocessing.std)
        return cls(source.canvas, config.encoder, config.strength, std)

    @torch.no_grad()
    def draw(self, seed: int) -> None:
        self.settings["seed"] = seed
        generator = torch.Generator().manual_seed(seed)
        self.trigger.uniform_(0, 0.1, generator=generator)
        for module in self.decoder.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                bound = module.weight[0].numel() ** -0.5
                for value in (module.weight, module.bias):
                    value.uniform_(-bound, bound, generator=generator)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Return the encoder's features (B, D); those of the images seen last are kept, for rules that ask again."""
        # Tensors made under inference_mode do not count the writes to them, and no training can use them.
        kept = None if images.is_inference() else self._last
        if kept is not None and kept[0]() is images and kept[1] == images._version:
            return kept[2]
        network, size = self._encoder
        resized = F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)
        found = network.to(images.device)((resized - self.encoder_mean) / self.encoder_std)
        if not (images.is_inference() or found.is_inference()):
            self._last = weakref.ref(images), images._version, found
        return found

    def picture(self, images: Tensor) -> Tensor:
        """Return the decoder's pictures (B, 3, H, W)."""
        features = self.features(images)
        count = images.shape[0]  # len() would fix the batch of an exported prompt
        joined = torch.cat([features, self.trigger.expand(count, -1)], 1)
        picture = self.decoder(joined.view(count, -1, _GRID, _GRID))
        if picture.shape[2:] == self.canvas:
            return picture
        return F.interpolate(picture, self.canvas, mode="bilinear", antialias=True, align_corners=False)

    def masks(self, images: Tensor) -> Tensor:
        return self.scale * self.picture(images)

    def forward(self, images: Tensor) -> Tensor:
        self.check(images)
        return (images + self.masks(images)).clamp(0, 1)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"prompt.trigger": [self.trigger], "prompt.decoder": list(self.decoder.parameters())}


def _decoder(channels: int) -> nn.Sequential:
    """Return a network from (B, channels, 7, 7) to (B, 3, 224, 224)."""
    widths = [channels, 32, 16, 16, 8, 8]
    layers: list[nn.Module] = []
    for given, made in zip(widths, widths[1:], strict=False):
        layers += [nn.ConvTranspose2d(given, given, 4, stride=2, padding=1, groups=given)]
        layers += [nn.Conv2d(given, made, 1), nn.GroupNorm(1, made), nn.GELU()]
    assert len(widths) == _DOUBLINGS + 1
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 3, 3, padding=1))


def _load(name: str) -> tuple[nn.Module, tuple[int, int], Sequence[float], Sequence[float]]:
    """Return a timm encoder, frozen, its input size, mean and std."""
    import timm
    import timm.data

    try:
        network = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # timm and the hub raise many types
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"prompt.encoder: {name!r} cannot be loaded by timm: {reason}; give a timm model with weights, or "
            "local-dir:FOLDER"
        ) from error
    config = timm.data.resolve_model_data_config(network)
    return (
        network.requires_grad_(False).eval(),
        tuple(config["input_size"][1:]),
        config["mean"],
        config["std"],
    )
