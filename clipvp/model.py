"""The prompted classifier: prompt, then source, then mapping."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .config import MappingConfig, RunConfig, SourceConfig
from .hub import read_artifact, write_artifact
from .images import Resize, to_rgb
from .labels import LabelSpace
from .mappings import LabelMapping, build_mapping
from .prompts import VisualPrompt, build_prompt
from .registry import MAPPINGS, PROMPTS, UserError
from .sharing import PairNetwork
from .sharing.network import Held
from .sources import Source, load_source
from .templates import PAPER_FIRST, resolve_templates, text_class_names


class PromptedClassifier(nn.Module):
    """A frozen source made a classifier of the target task.

    Args:
        prompt: Images (B, 3, h, w) in [0, 1] to pixels (B, 3, H, W).
        source: Pixels to source logits (B, S).
        mapping: Source logits to target logits (B, T).
        class_names: The T target classes, in the order of the target logits.
        share_border: Compute what the network makes of an image's surroundings, which a padding prompt has in
            common for all images, once a batch and not once an image. The result is the same up to rounding.
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
        state = _artifact_tensors(self)
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

    def save_pretrained(self, folder: str | Path) -> None:
        """Write prompt and mapping, without the source, as ``config.json`` and ``model.safetensors``."""
        source, labels = self.source, self.source.labels
        config = {
            "prompt": {"kind": self.prompt.kind, **self.prompt.settings},
            "mapping": {"kind": self.mapping.kind, **self.mapping.settings},
            "source": {
                "name": source.name,
                "revision": source.revision,
                "fingerprint": source.fingerprint,
                "canvas": list(source.canvas),
                "class_names": list(labels.class_names) or None,
                "templates": list(labels.templates) or None,
            },
            "class_names": self.class_names,
            "preprocessing": {
                "resize": self.resize.to_dict(),
                "mean": list(source.preprocessing.mean),
                "std": list(source.preprocessing.std),
            },
        }
        write_artifact(folder, config, _artifact_tensors(self))

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        precision: str = "fp32",
        device: str | torch.device | None = None,
        local_files_only: bool = False,
    ) -> PromptedClassifier:
        """Load a prompt that ``save_pretrained`` wrote, and its source by the name it was trained with.

        Raises:
            UserError: The folder is no whole prompt, the source is not to be had, or it has other weights.
        """
        config, tensors = read_artifact(folder)
        wanted = config["source"]
        try:
            source = load_source(
                wanted["name"],
                canvas=wanted["canvas"],
                class_names=wanted["class_names"],
                templates=wanted["templates"],
                precision=precision,
                device=device,
                revision=wanted["revision"],
                local_files_only=local_files_only,
            )
            if source.fingerprint != wanted["fingerprint"]:
                raise UserError(
                    f"{str(folder)!r} was made for {wanted['name']!r} with weights {wanted['fingerprint']}, "
                    f"and these are {source.fingerprint}: another version of the model"
                )
            prompt, mapping = dict(config["prompt"]), dict(config["mapping"])
            prompt = PROMPTS.get(prompt.pop("kind"))(**prompt)
            mapping = MAPPINGS.get(mapping.pop("kind"))(**mapping)
            classifier = cls(prompt, source, mapping, config["class_names"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{str(folder)!r}: config.json does not describe a prompt: {error}") from error
        own = _artifact_tensors(classifier)
        if own.keys() != tensors.keys():
            odd = ", ".join(sorted(own.keys() ^ tensors.keys()))
            raise UserError(f"{str(folder)!r}: model.safetensors has missing or extra tensors: {odd}")
        for name, value in own.items():
            if value.shape != tensors[name].shape or value.dtype != tensors[name].dtype:
                raise UserError(
                    f"{str(folder)!r}: tensor {name!r} is {tensors[name].dtype} {tuple(tensors[name].shape)}, "
                    f"not {value.dtype} {tuple(value.shape)}"
                )
        index = tensors["mapping.source_index"]
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(source.labels):
            raise UserError(f"{str(folder)!r}: the mapping names labels outside 0..{len(source.labels) - 1}")
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(tensors[name])
        return classifier.to(source.mean.device).eval()


def _artifact_tensors(classifier: PromptedClassifier) -> dict[str, Tensor]:
    """Return the tensors of an artefact by name: the prompt's and the mapping's."""
    parts = {"prompt": classifier.prompt, "mapping": classifier.mapping}
    return {
        f"{part}.{name}": value
        for part, module in parts.items()
        for name, value in module.state_dict().items()
    }


def _is_batch(images: Any) -> bool:
    single = isinstance(images, (str, bytes)) or hasattr(images, "getexif")
    return not single and not (hasattr(images, "ndim") and images.ndim < 4)


def source_from_config(
    config: SourceConfig,
    labels: Callable[[], LabelSpace] | None = None,
    device: str | torch.device | None = None,
) -> Source:
    """Return the source that a config names; ``labels`` makes the label space where it is a CLIP."""
    return load_source(
        config.name,
        canvas=config.canvas,
        labels=labels,
        precision=config.precision,
        revision=config.revision,
        local_files_only=config.local_files_only,
        device=device,
    )


def text_label_space(config: MappingConfig, class_names: Sequence[str]) -> LabelSpace:
    """Return the label space that a config describes for a CLIP and a task's class names."""
    templates = config.templates or (PAPER_FIRST if config.kind == "identity" else "paper")
    return LabelSpace.from_templates(
        resolve_templates(templates), text_class_names(class_names, config.class_names)
    )


def build_classifier(
    config: RunConfig, class_names: Sequence[str], device: str | torch.device | None = None
) -> PromptedClassifier:
    """Return the untrained classifier that a config describes for a task's class names."""
    source = source_from_config(config.source, lambda: text_label_space(config.mapping, class_names), device)
    if config.mapping.templates is not None and not source.labels.is_text:
        raise UserError(f"mapping.templates: {source.name!r} has a closed label set and no text tower")
    prompt = build_prompt(config.prompt, source.canvas, source.preprocessing.std)
    mapping = build_mapping(config.mapping, source.labels, class_names, config.seed)
    share = config.prompt.share_border
    return PromptedClassifier(prompt, source, mapping, class_names, share).to(source.mean.device)
