"""Several prompts of one kind, each for a part of a CLIP's texts; an image is encoded once under each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..config.schema import PromptConfig
from ..images import Resize
from ..registry import PROMPTS, UserError
from .base import VisualPrompt

if TYPE_CHECKING:
    from ..sources.base import Source

_STARTS = 10  # of k-means; the one with the smallest distances is taken


class SeveralPrompts(VisualPrompt):
    """V prompts; the logit of a text is that of the image under the text's own prompt.

    Made by ``prompts.build.build_prompt`` where ``prompt.views`` is above 1.

    Args:
        canvas: (H, W) of the prompted pixels.
        each: For each prompt its kind and the keyword arguments that build it; all take images of one size.
        view_of: The prompt, 0..V-1, of each of the S texts.
        view_by: clusters or groups, by which the texts were shared out.

    Source: DVP (arXiv 2506.01000), one prompt for each cluster or group of texts.
    """

    kind = "several"

    def __init__(
        self,
        canvas: Sequence[int],
        each: Sequence[dict[str, Any]],
        view_of: Sequence[int],
        view_by: str = "clusters",
    ):
        prompts = [_built(section) for section in each]
        if not prompts or not set(view_of) <= set(range(len(prompts))):
            raise UserError(f"several prompts: each text needs one of the {len(prompts)} prompts")
        if len({(prompt.canvas, prompt.image_size) for prompt in prompts}) > 1:
            raise UserError("several prompts: they take images of different sizes")
        settings = {"each": list(each), "view_of": list(view_of), "view_by": view_by}
        super().__init__(canvas, prompts[0].image_size, **settings)
        self.view_by = view_by
        self.prompts = nn.ModuleList(prompts)
        self.views = len(prompts)
        self.register_buffer("view_of", torch.tensor(view_of), persistent=False)

    @classmethod
    def from_config(cls, config: PromptConfig, source: Source) -> SeveralPrompts:
        raise UserError(
            "prompt.kind: several is what prompt.views makes; give the kind of each, and prompt.views"
        )

    @classmethod
    def of(cls, prompts: Sequence[VisualPrompt], view_of: Sequence[int], view_by: str) -> SeveralPrompts:
        """Return prompts of one kind as one; they are built anew from their settings."""
        each = [{"kind": prompt.kind, **prompt.settings} for prompt in prompts]
        return cls(prompts[0].canvas, each, view_of, view_by)

    def take_over(self, other: SeveralPrompts, source: Source, own_source: Source) -> None:
        """As ``VisualPrompt.take_over``; a text gets the prompt of the cluster whose mean embedding is nearest."""
        super().take_over(other, source, own_source)
        if self.view_by == "clusters":
            owner, texts = other.view_of.cpu(), source.text_features.detach().cpu()
            means = torch.stack([texts[owner == view].mean(0) for view in range(other.views)])
            nearest = torch.cdist(own_source.text_features.detach().cpu(), means).argmin(1)
            self.view_of.copy_(nearest)
            self.settings["view_of"] = nearest.tolist()

    def parts(self) -> list[VisualPrompt]:
        return list(self.prompts)

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([prompt(images) for prompt in self.prompts])

    def merge(self, outputs: Tensor) -> Tensor:
        if outputs.shape[1] != len(self.view_of):
            raise ValueError(
                f"several prompts merge the logits of {len(self.view_of)} texts, not {outputs.shape[1]} numbers"
            )
        by_text = outputs.view(self.views, -1, outputs.shape[1]).permute(0, 2, 1)
        return by_text[self.view_of, torch.arange(outputs.shape[1], device=outputs.device)].T

    def resize(self, source_resize: Resize) -> Resize:
        return self.prompts[0].resize(source_resize)

    def fill(self, empty: str) -> None:
        for prompt in self.prompts:
            prompt.fill(empty)
        self.settings["each"] = [{"kind": prompt.kind, **prompt.settings} for prompt in self.prompts]

    def draw(self, seed: int) -> None:
        for view, prompt in enumerate(self.prompts):
            prompt.draw((seed + 1_000_003 * view) % (1 << 63))
        self.settings["each"] = [{"kind": prompt.kind, **prompt.settings} for prompt in self.prompts]

    def constrain(self) -> None:
        for prompt in self.prompts:
            prompt.constrain()

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        groups: dict[str, list[nn.Parameter]] = {}
        for prompt in self.prompts:
            for name, parameters in prompt.parameter_groups().items():
                groups.setdefault(name, []).extend(parameters)
        return groups

    def num_trainable(self) -> int:
        return sum(prompt.num_trainable() for prompt in self.prompts)


def _built(section: dict[str, Any]) -> VisualPrompt:
    settings = dict(section)
    return PROMPTS.get(settings.pop("kind", None))(**settings)


def views_of_texts(config: PromptConfig, source: Source, seed: int) -> list[int]:
    """Return the prompt of each text, as ``prompt.view_by`` says.

    Args:
        config: ``views`` and ``view_by`` are used.
        source: A CLIP.
        seed: Of k-means.

    Raises:
        UserError: The source has no texts, or not as many groups or texts as there are views.
    """
    labels, views = source.labels, config.views
    if not labels.is_text:
        raise UserError(
            f"prompt.views: {views} prompts share out a CLIP's texts; {source.name!r} has a closed label set"
        )
    if config.view_by == "groups":
        groups = list(dict.fromkeys(labels.groups))
        if len(groups) != views:
            said = f"{len(groups)}: {', '.join(groups)}" if groups else "none"
            raise UserError(
                f"prompt.views: {views} prompts by groups need as many groups of texts, there are {said}"
            )
        return [groups.index(group) for group in labels.groups]
    if views > len(labels):
        raise UserError(f"prompt.views: {views} prompts are more than the {len(labels)} texts")
    return clusters(source.text_features.detach().cpu().double().numpy(), views, seed)


def clusters(points: np.ndarray, count: int, seed: int) -> list[int]:
    """Return the cluster of each of n points (n, D), by k-means; clusters are numbered as the points come."""
    from scipy.cluster.vq import kmeans2

    if len(np.unique(points, axis=0)) < count:
        raise UserError(f"prompt.views: {count} prompts are more than the texts that differ; give fewer")
    numbers, best, smallest = np.random.default_rng([seed % 2**64, 0xC1]), None, np.inf
    for _ in range(_STARTS):
        centres, owner = kmeans2(points, count, iter=50, minit="++", missing="warn", seed=numbers)
        distance = float(((points - centres[owner]) ** 2).sum())
        if len(set(owner.tolist())) == count and distance < smallest - 1e-9:
            best, smallest = owner, distance
    if best is None:
        raise UserError(f"prompt.views: the texts do not fall into {count} clusters; give fewer")
    order = {cluster: place for place, cluster in enumerate(dict.fromkeys(best.tolist()))}
    return [order[cluster] for cluster in best.tolist()]
