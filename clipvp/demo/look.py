"""What a prompted classifier makes of one image, for people: the pixels that the source sees, the classes, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..artifact.format import find_artifact, read_config
from ..model import PromptedClassifier
from ..registry import UserError
from ..results.tables import MOST_LINKS

_CARRIED = 3  # source labels shown for a class, and of the source itself


@dataclass(frozen=True)
class Shown:
    """A class or a source label with its score, 0..1."""

    label: str
    score: float


@dataclass(frozen=True)
class ShownClass(Shown):
    """A class with the source labels, or texts, that stand for it, the heaviest on this image first."""

    carried: tuple[Shown, ...] = ()


@dataclass(frozen=True)
class Look:
    """What a classifier makes of one image.

    Args:
        pixels: What the source sees, one picture a view of the prompt.
        classes: The best classes first.
        source: The first labels of the source by itself on these pixels; empty where it has no labels.
    """

    pixels: list[Image.Image]
    classes: list[ShownClass]
    source: list[Shown]


@torch.no_grad()
def look(classifier: PromptedClassifier, image: Any, top_k: int = 5) -> Look:
    """Return what a classifier makes of one image.

    Args:
        classifier: Any.
        image: What ``PromptedClassifier.predict`` takes.
        top_k: Classes to show.

    Raises:
        clipvp.images.ImageError: It is not a readable image.
    """
    read = torch.from_numpy(classifier.resize.read(image))
    images = read.permute(2, 0, 1)[None].to(classifier.device, torch.float32) / 255
    outputs = classifier.source_outputs(images)
    source_logits = classifier.source_logits(outputs)
    shares = None if source_logits is None else source_logits[0].float().softmax(0).cpu()
    scores, classes = classifier.mapping(outputs)[0].softmax(0).topk(min(top_k, len(classifier.class_names)))
    names = classifier.source.labels.names
    rows = [
        ShownClass(classifier.class_names[c], score, _carried(classifier, c, shares))
        for score, c in zip(scores.tolist(), classes.tolist(), strict=True)
    ]
    source = [] if shares is None else _best(shares, names)
    return Look([_picture(pixels) for pixels in classifier.prompt(images)], rows, source)


def _carried(classifier: PromptedClassifier, target: int, shares: Tensor | None) -> tuple[Shown, ...]:
    """Return the source labels linked to a class, ranked by their share on this image times their weight."""
    links = classifier.mapping.links(MOST_LINKS)
    index, weight = links.index[target], links.weight[target]
    kept = [place for place in range(len(index)) if index[place] >= 0]
    if shares is None or not kept:
        return ()
    kept.sort(key=lambda place: -float(shares[index[place]] * weight[place]))
    names = classifier.source.labels.names
    return tuple(Shown(names[index[place]], float(shares[index[place]])) for place in kept[:_CARRIED])


def _best(shares: Tensor, names: tuple[str, ...]) -> list[Shown]:
    found = shares.topk(min(_CARRIED, len(shares)))
    pairs = zip(found.values.tolist(), found.indices.tolist(), strict=True)
    return [Shown(names[index], score) for score, index in pairs]


def _picture(pixels: Tensor) -> Image.Image:
    """Return pixels (3, H, W) as a picture; an added prompt may leave [0, 1]."""
    return Image.fromarray((pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy())


def load_side_by_side(prompts: list[str], **options: Any) -> list[PromptedClassifier]:
    """Load prompts. Those of one source share it, so that it is loaded once. With another canvas or other texts it is
    another source.

    Args:
        prompts: Folders or hub ids.
        options: What ``PromptedClassifier.from_pretrained`` takes.
    """
    found: list[PromptedClassifier] = []
    for prompt in prompts:
        found.append(_load_beside(found, prompt, options))
    return found


def _load_beside(
    others: list[PromptedClassifier], prompt: str, options: dict[str, Any]
) -> PromptedClassifier:
    where = {key: options[key] for key in ("revision", "local_files_only") if key in options}
    wanted = read_config(find_artifact(prompt, **where))["source"]["name"]
    for other in others:
        if options.get("source") or other.source.name == wanted:
            try:
                return PromptedClassifier.from_pretrained(prompt, **{**options, "source": other.source})
            except UserError:  # at another canvas, with other texts
                continue
    return PromptedClassifier.from_pretrained(prompt, **options)
