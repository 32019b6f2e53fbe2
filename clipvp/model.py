"""The prompted classifier: prompt, then source, then mapping."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .artifact.save import SavedPrompt, artifact_tensors
from .images import Resize, to_rgb
from .mappings.base import LabelMapping
from .prompts.base import VisualPrompt
from .sharing import PairNetwork
from .sharing.network import Held
from .sources.base import Source


class PromptedClassifier(nn.Module, SavedPrompt):
    """A frozen source made a classifier of the target task.

    ``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` work as for any model of the hub; only prompt and
    mapping are saved, and reading them is this class's own: strict, and never by what a config says of arguments.

    Args:
        prompt: Images (B, 3, h, w) in [0, 1] to pixels (B, 3, H, W).
        source: Pixels to source logits (B, S).
        mapping: Source logits to target logits (B, T).
        class_names: The T target classes, in the order of the target logits.
        share_border: Compute what the network makes of an image's surroundings, which a padding prompt has in
            common for all images, once a batch and not once an image. The result is the same up to rounding.

    Attributes:
        results: What the run that trained it found, ready for JSON; saved along, for the model card.
    """

    def __init__(
        self,
        prompt: VisualPrompt,
        source: Source,
        mapping: LabelMapping,
        class_names: Sequence[str],
        share_border: bool = True,
    ):
        super().__init__()
        if prompt.canvas != tuple(source.canvas):
            raise ValueError(f"the prompt's canvas {prompt.canvas} is not the source's {source.canvas}")
        if mapping.num_source != len(source.labels) or mapping.num_target != len(class_names):
            raise ValueError(
                f"a mapping of {mapping.num_source} labels to {mapping.num_target} classes does not fit "
                f"{len(source.labels)} labels and {len(class_names)} classes"
            )
        self.prompt, self.source, self.mapping = prompt, source, mapping
        self.class_names = list(class_names)
        self._pair_network = PairNetwork(source.network) if share_border else None
        self.results: dict[str, Any] | None = None
        self._home: Path | None = None  # the folder it was loaded from, where its pictures lie
        self._held: Held | None = None  # the surroundings' part of the work, while the prompt stands still

    @property
    def resize(self) -> Resize:
        """How a raw image becomes what ``forward`` takes."""
        return self.prompt.resize(self.source.resize)

    @property
    def is_prompt(self) -> bool:
        """Whether the source is frozen, so that prompt and mapping are all that was learned."""
        return not any(parameter.requires_grad for parameter in self.source.parameters())

    @property
    def shares_border(self) -> bool:
        return self._pair_network is not None

    @property
    def device(self) -> torch.device:
        return self.prompt.delta.device

    def source_logits(self, images: Tensor) -> Tensor:
        """Return source logits (B, S) float32 of images (B, 3, h, w) in [0, 1]."""
        common = self.prompt.surroundings() if self._pair_network is not None and self.is_prompt else None
        if common is None:
            return self.source(self.prompt(images))
        surroundings, box = common
        shared, region = self.source.normalize(surroundings), self.source.normalize(images)
        if not torch.is_grad_enabled():
            if self._held is None or not self._held.fresh:
                self._held = self._pair_network.hold(shared, self.prompt.delta)
            shared = self._held
        return self.source.logits(self.source.run(self._pair_network, shared, region, box))

    def forward(self, images: Tensor) -> Tensor:
        """Return target logits (B, T) float32 of images (B, 3, h, w) in [0, 1]."""
        return self.mapping(self.source_logits(images))

    def num_trainable(self) -> int:
        """Return how many numbers training can change to an effect."""
        others = [p for p in self.parameters() if p.requires_grad and p is not self.prompt.delta]
        own = self.prompt.num_trainable() if self.prompt.delta.requires_grad else 0
        return own + sum(parameter.numel() for parameter in others)

    def trained_state(self) -> dict[str, Tensor]:
        """Return what training changes, by name: the prompt, the mapping, and the source if it trains."""
        state = artifact_tensors(self)
        if not self.is_prompt:
            state |= {f"source.{name}": value for name, value in self.source.state_dict().items()}
        return state

    @torch.no_grad()
    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Take over a state that ``trained_state`` gave; names and shapes must be the same."""
        own = self.trained_state()
        if own.keys() != state.keys():
            raise ValueError(f"the state's names differ: {sorted(own.keys() ^ state.keys())}")
        for name, value in own.items():
            if value.shape != state[name].shape:
                raise ValueError(f"{name} is {tuple(state[name].shape)}, not {tuple(value.shape)}")
            value.copy_(state[name])

    @torch.no_grad()
    def predict(self, images: Any, top_k: int = 5, batch_size: int = 64) -> list[list[dict]]:
        """Classify images of any kind.

        Args:
            images: One or many of: path, encoded bytes, PIL image, uint8 array (h, w), (h, w, 1|3|4).
            top_k: Classes returned for each image, at most T.
            batch_size: Images at a time.

        Returns:
            For each image the best classes first, each ``{"label", "score", "source_label"}``; scores are
            the softmax of the target logits, in [0, 1].

        Raises:
            clipvp.images.ImageError: Something is no readable image.
        """
        many = list(images) if isinstance(images, Iterable) and _is_batch(images) else [images]
        resize, index = self.resize, self.mapping.source_index.tolist()
        results = []
        for start in range(0, len(many), batch_size):
            arrays = [torch.from_numpy(resize(to_rgb(image))) for image in many[start : start + batch_size]]
            batch = torch.stack(arrays).permute(0, 3, 1, 2).to(self.device, torch.float32) / 255
            scores, classes = self(batch).softmax(1).topk(min(top_k, len(self.class_names)), dim=1)
            for row_scores, row in zip(scores.tolist(), classes.tolist(), strict=True):
                results.append(
                    [
                        {
                            "label": self.class_names[c],
                            "score": score,
                            "source_label": self.source.labels.names[index[c]],
                        }
                        for score, c in zip(row_scores, row, strict=True)
                    ]
                )
        return results


def _is_batch(images: Any) -> bool:
    single = isinstance(images, (str, bytes, bytearray, memoryview)) or hasattr(images, "getexif")
    return not single and not (hasattr(images, "ndim") and images.ndim < 4)
