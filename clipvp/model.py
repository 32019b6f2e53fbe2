"""The prompted classifier: prompt, then source, then mapping."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .artifact.save import artifact_tensors, load_prompt, push_prompt, save_prompt
from .cpu import float32_default
from .data.decode import num_threads
from .data.inputs import single_images
from .images import ImageError, Reading, Resize
from .mappings.base import LabelMapping
from .mappings.folded import FoldedMapping
from .notebook import html_table
from .prompts.base import VisualPrompt
from .registry import UserError, check_choice, check_positive
from .results.tables import MAPPING_COLUMNS, MOST_LINKS, mapping_rows, mapping_text, scores_table
from .sharing import CoreTape
from .sources.base import PixelsInParts, Source


class PromptedClassifier(nn.Module):
    """A source made a classifier of the target task.

    Args:
        prompt: Images (B, 3, h, w) in [0, 1] to pixels (V*B, 3, H, W).
        source: Pixels to source logits (B, S) or features (B, D), as ``source.outputs`` says.
        mapping: What the source gives to target logits (B, T).
        class_names: The T target classes, in the order of the target logits.
        share_border: Let the source compute once a batch, not once an image, what all prompted images have in common
            (``prompt.surroundings``), and without gradient what does not depend on the prompt (``prompt.acts_on``). The
            result is the same up to rounding.
        reading: What the files of its images do not say.

    Attributes:
        results: Results of the run that trained it, ready for JSON; saved along, for the model card.
        folder: The folder it was loaded from, with its pictures; None when it was not loaded.
    """

    def __init__(
        self,
        prompt: VisualPrompt,
        source: Source,
        mapping: LabelMapping,
        class_names: Sequence[str],
        share_border: bool = True,
        reading: Reading | None = None,
    ):
        super().__init__()
        if prompt.canvas != tuple(source.canvas):
            raise ValueError(f"the prompt's canvas {prompt.canvas} is not the source's {source.canvas}")
        if mapping.takes != source.outputs:
            raise ValueError(f"the mapping takes {mapping.takes}, and the source gives {source.outputs}")
        if mapping.views != prompt.kept_views:
            raise UserError(
                f"mapping.kind: {mapping.kind} takes the logits of {mapping.views} view"
                f"{'' if mapping.views == 1 else 's'} of an image, and the {prompt.kind} prompt gives "
                f"{prompt.kept_views}; both need the same levels and crops, or none"
            )
        size = len(source.labels) if mapping.takes == "logits" else source.num_features
        if mapping.num_source != size or mapping.num_target != len(class_names):
            raise ValueError(
                f"a mapping of {mapping.num_source} {mapping.takes} to {mapping.num_target} classes does not fit "
                f"{size} {mapping.takes} and {len(class_names)} classes"
            )
        self.prompt, self.source, self.mapping = prompt, source, mapping
        self.class_names = list(class_names)
        self.share_border, self.reading = share_border, reading or Reading()
        self._fold: tuple[Any, PromptedClassifier] | None = None
        self.results: dict[str, Any] | None = None
        self.folder: Path | None = None

    def _repr_html_(self) -> str:
        height, width = self.source.canvas
        rows: list[list[Any]] = [
            ["source", f"{self.source.name} at {height} x {width}"],
            ["prompt", self.prompt.kind],
            ["mapping", self.mapping.kind],
            ["trained numbers", self.num_trainable()],
            *([label, acc1] for label, acc1, *_ in scores_table((self.results or {}).get("metrics", {}))),
        ]
        table = mapping_rows(self.mapping.links(MOST_LINKS), self.source.labels.names, self.class_names)
        classes = [[row["class"], mapping_text(row, "label")] for row in table]
        headers = [MAPPING_COLUMNS["class"], MAPPING_COLUMNS["label"]]
        return html_table(f"{len(self.class_names)} classes", rows) + html_table("mapping", classes, headers)

    @property
    def resize(self) -> Resize:
        """How a raw image becomes what ``forward`` takes."""
        return replace(self.prompt.resize(self.source.resize), reading=self.reading)

    @property
    def source_is_frozen(self) -> bool:
        """Whether only prompt and mapping train; else the source has weights that train, see ``source.weights``."""
        return not any(parameter.requires_grad for parameter in self.source.parameters())

    @property
    def device(self) -> torch.device:
        return self.source.mean.device

    def source_outputs(self, images: Tensor, tape: CoreTape | None = None) -> Tensor:
        """Return what the mapping takes of images (B, 3, h, w) in [0, 1]: logits (B, S), those of several views
        (B, V, S), or features (B, D), float32.

        Args:
            images: The same under each prompt.
            tape: What the source reads of the pixels that the prompt does not reach, to be recorded or played.
        """
        parts = [self._view_outputs(part, images, tape) for part in self.prompt.parts()]
        return self.prompt.merge(parts[0] if len(parts) == 1 else torch.cat(parts))

    def _view_outputs(self, prompt: VisualPrompt, images: Tensor, tape: CoreTape | None) -> Tensor:
        """Return what the source gives of images under one prompt, with less work where the prompt allows it."""
        pixels = None
        if self.share_border and self.source_is_frozen:
            pixels = self._pixels_in_parts(prompt, images, tape)
        pixels = prompt(images) if pixels is None else pixels
        return self.source.encode(pixels) if self.source.outputs == "features" else self.source(pixels)

    def _pixels_in_parts(
        self, prompt: VisualPrompt, images: Tensor, tape: CoreTape | None
    ) -> PixelsInParts | None:
        """Return the prompted pixels in parts; None where nothing is gained by it."""
        common = prompt.surroundings()
        acting = prompt.acts_on() if prompt.masks_gradient else None
        if common is not None:
            made_from = (*prompt.parameters(), *prompt.buffers())
            core = acting[1] if acting else None
            return PixelsInParts(common[0], prompt.inside(images), common[1], made_from, core, tape)
        if acting is None or self.source.is_compiled or not (torch.is_grad_enabled() or tape is not None):
            return None
        pixels, (box, core) = prompt(images), acting
        if box == (0, 0, *prompt.canvas):
            return PixelsInParts(None, pixels, box, core=core, tape=tape)
        top, left, bottom, right = box
        return PixelsInParts(pixels, pixels[:, :, top:bottom, left:right], box, core=core, tape=tape)

    def plain_features(self, images: Tensor) -> Tensor:
        """Return the source's features (B, D) of images (B, 3, h, w) without the prompt, enlarged to the canvas."""
        if images.shape[2:] != torch.Size(self.prompt.canvas):
            images = F.interpolate(images, self.prompt.canvas, mode="bicubic", antialias=True).clamp(0, 1)
        return self.source.encode(images)

    def source_logits(self, outputs: Tensor) -> Tensor | None:
        """Return source logits (B, S) of what ``source_outputs`` gave, of the first view where there are several; None
        of a source without texts."""
        if not self.source.has_logits:
            return None
        if self.mapping.views > 1:
            outputs = outputs[:, 0]
        return self.source.score(outputs) if self.source.outputs == "features" else outputs

    def forward(self, images: Tensor) -> Tensor:
        """Return target logits (B, T) float32 of images (B, 3, h, w) in [0, 1]."""
        return self.mapping(self.source_outputs(images))

    @torch.no_grad()
    def fold(self) -> PromptedClassifier:
        """Return the same classifier with the mapping folded into the layer that makes the source logits.

        For a CLIP that is the text matrix: T columns are computed in the place of S texts. The target logits are the
        same up to rounding. The classifier itself is returned where the mapping is not linear on logits, where the
        network does not end in a linear layer, and where the prompt has several views. What trains later changes the
        folded one no more.
        """
        try:
            folds = self.mapping.takes == "logits" and self.prompt.views == 1
            head = self.source.linear_head() if folds else None
        except UserError:
            head = None
        if head is None or self.mapping.fold(*head[:2]) is None:
            return self
        source = copy.copy(self.source)
        source.outputs = "features"
        mapping = FoldedMapping.of(self.mapping, *head)
        folded = PromptedClassifier(
            self.prompt, source, mapping, self.class_names, self.share_border, self.reading
        )
        folded.results, folded.folder = self.results, self.folder
        return folded.train(self.training)

    def _without_texts(self) -> PromptedClassifier:
        """Return ``fold()`` with a source that has no texts, where it is a CLIP."""
        folded = self.fold()
        if folded.mapping.takes == "logits":
            what = f"{self.mapping.kind} mapping" if self.prompt.views == 1 else f"{self.prompt.kind} prompt"
            raise UserError(f"the {what} of {self.source.name!r} cannot be folded")
        source = folded.source.without_texts() if self.source.labels.is_text else folded.source  # type: ignore[operator]
        classifier = PromptedClassifier(
            self.prompt, source, folded.mapping, self.class_names, self.share_border, self.reading
        )
        classifier.results, classifier.folder = self.results, self.folder
        return classifier

    def _kept_fold(self) -> PromptedClassifier:
        """Return ``fold()``, made anew where the mapping has changed."""
        values = (*self.mapping.parameters(), *self.mapping.buffers(), *self.source.buffers())
        state = [(value.data_ptr(), value._version) for value in values], self.share_border
        if self._fold is None or self._fold[0] != state:
            self._fold = (state, self.fold())  # in a tuple: it is no module of this one
        return self._fold[1]

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the parameters that train by group: of the prompt, of the mapping, and ``source`` when it trains."""
        groups = {
            **self.prompt.parameter_groups(),
            **self.mapping.parameter_groups(),
            "source": [parameter for parameter in self.source.parameters() if parameter.requires_grad],
        }
        return {name: parameters for name, parameters in groups.items() if parameters}

    def num_trainable(self) -> int:
        """Return the number of effective trainable parameters."""
        others = [*self.mapping.parameters(), *self.source.parameters()]
        own = sum(parameter.numel() for parameter in others if parameter.requires_grad)
        return own + self.prompt.num_trainable()

    def trained_state(self) -> dict[str, Tensor]:
        """Return what training changes, by name: the prompt, the mapping, and the source's weights that train."""
        return artifact_tensors(self)

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

    @float32_default()
    @torch.no_grad()
    def predict(
        self, images: Any, top_k: int = 5, batch_size: int = 64, on_error: str = "raise"
    ) -> list[list[dict] | ImageError]:
        """Classify images of any kind.

        Args:
            images: One or many of: path, folder, pattern (``photos/*.jpg``), encoded bytes, open file, PIL image,
                array or tensor, as ``clipvp.images.to_rgb`` takes them. Many may be a list, an array, a pandas
                Series or another iterable.
            top_k: Classes returned for each image, 1 or more; T where it is above T.
            batch_size: Images at a time.
            on_error: What an unreadable image does: raise, or skip (its place in the result holds its ``ImageError``).

        Returns:
            For each image the best classes first, each ``{"label", "score", "source_label"}``; scores are
            the softmax of the target logits, in [0, 1]; the source label is None where the mapping has none. The
            images of a folder or a pattern are in the order of their names.

        Raises:
            clipvp.images.ImageError: Something is not a readable image.
            UserError: A folder holds no images, or a number is out of range.
        """
        check_positive("top_k", top_k)
        check_positive("batch_size", batch_size)
        check_choice("on_error", on_error, ["raise", "skip"])
        many = single_images(images)
        # Of a closed label set the last layer costs nothing beside the network.
        classifier = self._kept_fold() if self.source.labels.is_text else self
        results: list[list[dict] | ImageError] = []
        with ThreadPoolExecutor(num_threads()) as pool:
            for start in range(0, len(many), batch_size):
                read = list(pool.map(self._read, many[start : start + batch_size]))
                errors = [pixels for pixels in read if isinstance(pixels, ImageError)]
                if errors and on_error == "raise":
                    raise errors[0]
                good = [torch.from_numpy(pixels) for pixels in read if not isinstance(pixels, ImageError)]
                rows = iter(classifier._classify(torch.stack(good), top_k) if good else [])
                results += [pixels if isinstance(pixels, ImageError) else next(rows) for pixels in read]
        return results

    def _read(self, image: Any) -> Any:
        """Return the pixels (h, w, 3) uint8 of an image, or its error."""
        try:
            return self.resize.read(image)
        except ImageError as error:
            return error

    def _classify(self, pixels: Tensor, top_k: int) -> list[list[dict]]:
        """Return the best classes of images (B, h, w, 3) uint8."""
        labels = self.source.labels.names
        names = [labels[i] if i >= 0 else None for i in self.mapping.links(1).index[:, 0].tolist()]
        images = pixels.permute(0, 3, 1, 2).to(self.device, torch.float32) / 255
        scores, classes = self(images).softmax(1).topk(min(top_k, len(self.class_names)), dim=1)
        return [
            [
                {"label": self.class_names[c], "score": score, "source_label": names[c]}
                for score, c in zip(row_scores, row, strict=True)
            ]
            for row_scores, row in zip(scores.tolist(), classes.tolist(), strict=True)
        ]

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        folded: bool = False,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **options: Any,
    ) -> str | None:
        """Write prompt, mapping and what trained of the source's weights, and a model card.

        The files are ``config.json`` and ``model.safetensors``; the source itself is not written.

        Args:
            folder: Made where it is missing.
            folded: Write ``fold()``. A CLIP is then loaded without its text tower and encodes no text.
            push_to_hub: Push to the hub too.
            repo_id: ``ORG/NAME``, for ``push_to_hub``; the folder's name when empty.
            options: What ``push_to_hub`` takes.

        Returns:
            The address of the commit where it was pushed, else None.

        Raises:
            UserError: ``folder`` is a file, or the mapping cannot be folded.
        """
        classifier = self._without_texts() if folded else self
        save_prompt(classifier, Path(folder).expanduser())
        return classifier.push_to_hub(repo_id or Path(folder).name, **options) if push_to_hub else None

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Write the prompt to a repository of the hub, made where it is missing, in one commit.

        Where the source is a local folder, only the folder's own name is published, and a warning says what others
        need.

        Args:
            repo_id: ``ORG/NAME``.
            options: private, branch, create_pr, commit_message and token, as in huggingface_hub.

        Returns:
            The address of the commit.

        Raises:
            UserError: The hub cannot be reached or refuses.
        """
        return push_prompt(self, repo_id, **options)

    @classmethod
    def from_pretrained(
        cls,
        prompt: str | Path,
        *,
        source: str | Source | None = None,
        revision: str | None = None,
        precision: str = "fp32",
        device: str | torch.device | None = None,
        share_border: bool = True,
        local_files_only: bool = False,
        **download: Any,
    ) -> PromptedClassifier:
        """Load a prompt that ``save_pretrained`` wrote, and its source by the name it was trained with.

        Args:
            prompt: A folder, which comes first, or a hub id ``ORG/NAME``.
            source: Overrides the saved source name, for a model that is in another folder here; its weights and
                preprocessing must be the same. Or a source that is loaded already, to share it.
            revision: Branch, tag or commit of the prompt on the hub; the source's own is saved in the prompt.
            precision: fp32, bf16 or fp16, of the frozen network only.
            device: Where it runs; the CPU when None.
            share_border: As for the class.
            local_files_only: Take what the local hub cache holds, of prompt and source.
            download: token, cache_dir and force_download, for the prompt's own files.

        Raises:
            UserError: The prompt is missing, damaged or needs a plug-in, or the source cannot be loaded or has other
                weights or preprocessing.
        """
        parts = load_prompt(
            prompt,
            source=source,
            revision=revision,
            precision=precision,
            device=device,
            local_files_only=local_files_only,
            **download,
        )
        try:
            names, reading = parts.class_names, parts.reading
            classifier = cls(parts.prompt, parts.source, parts.mapping, names, share_border, reading)
        except ValueError as error:
            raise UserError(
                f"prompt {str(prompt)!r}: config.json does not describe a prompt: {error}"
            ) from error
        classifier.results, classifier.folder = parts.results, parts.folder
        return classifier.to(classifier.device).eval()
