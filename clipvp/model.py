"""The prompted classifier: prompt, then source, then mapping."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelHubMixin
from torch import Tensor, nn

from .card import PICTURES, card_text
from .config import MappingConfig, RunConfig, SourceConfig
from .hub import CARD, find_artifact, read_artifact, write_artifact
from .images import Resize, to_rgb
from .labels import LabelSpace
from .mappings import LabelMapping, build_mapping
from .prompts import VisualPrompt, build_prompt
from .registry import MAPPINGS, PROMPTS, UserError
from .sharing import PairNetwork
from .sharing.network import Held
from .sources import Source, load_source
from .sources.hub import hub_access
from .sources.origin import is_local, origin, public_name
from .templates import PAPER_FIRST, resolve_templates, text_class_names


class PromptedClassifier(nn.Module, ModelHubMixin):
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

    def artifact_config(self) -> dict[str, Any]:
        """Return what ``config.json`` of the saved prompt says, but for its format."""
        source, labels = self.source, self.source.labels
        return {
            "prompt": {"kind": self.prompt.kind, **self.prompt.settings},
            "mapping": {"kind": self.mapping.kind, **self.mapping.settings},
            "source": {
                "name": source.name,
                "revision": source.revision,
                "fingerprint": source.fingerprint,
                "canvas": list(source.canvas),
                "class_names": list(labels.class_names) or None,
                "templates": list(labels.templates) or None,
                **dict(zip(("repository", "license"), origin(source.name), strict=True)),
            },
            "class_names": self.class_names,
            "preprocessing": {
                "resize": self.resize.to_dict(),
                "mean": list(source.preprocessing.mean),
                "std": list(source.preprocessing.std),
            },
            # For people: loading takes the mapping from the tensors, and reads neither table nor results.
            "mapping_table": self.mapping.describe(labels, self.class_names),
            "results": self.results,
        }

    def save_pretrained(self, folder: str | Path, **options: Any) -> str | None:
        """Write prompt and mapping, without the source, as ``config.json`` and ``model.safetensors``, and a model card.

        Args:
            folder: Made where it is missing.
            options: ``push_to_hub=True`` pushes too; then ``repo_id`` (the folder's name when empty) and what
                ``push_to_hub`` takes.

        Returns:
            The address of the commit where it was pushed, else None.
        """
        if Path(folder).exists() and not Path(folder).is_dir():
            raise UserError(f"{str(folder)!r} is a file, not a folder")
        if not self.is_prompt:
            raise UserError("the source's own weights train, and a saved prompt holds none of them")
        (Path(folder) / CARD).unlink(
            missing_ok=True
        )  # the mixin keeps a card that is there, of whatever prompt
        return super().save_pretrained(folder, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        write_artifact(save_directory, self.artifact_config(), _artifact_tensors(self))
        if self._home is not None and self._home.resolve() != save_directory.resolve():
            for picture in self._home.glob("*.png"):
                shutil.copyfile(picture, save_directory / picture.name)

    def generate_model_card(self, prompt: str | None = None) -> ModelCard:
        """Return the model card, made of what is known of this prompt; ``prompt`` is its hub id."""
        pictures = [name for name in PICTURES if self._home and (self._home / f"{name}.png").is_file()]
        return ModelCard(card_text(self.artifact_config(), pictures, prompt))

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Write the prompt to a repository of the hub, made where it is missing, in one commit.

        Where the source is a local folder, only the folder's own name is told, and a warning says what others need.

        Args:
            repo_id: ``ORG/NAME``.
            options: private, branch, create_pr, commit_message, token and more of
                ``huggingface_hub.ModelHubMixin.push_to_hub``.

        Returns:
            The address of the commit.

        Raises:
            UserError: The hub cannot be reached or refuses.
        """
        name = self.source.name
        if is_local(name):
            warnings.warn(
                f"push to {repo_id!r}: the source {name!r} is a local folder; others need that model too, and load "
                "the prompt with from_pretrained(..., source=NAME)",
                stacklevel=2,
            )
        with hub_access(repo_id, [repo_id], options.get("branch"), False, what="push to") as offline:
            if offline:
                raise UserError(f"push to {repo_id!r}: the hub is switched off or cannot be reached")
            try:
                self.source.name = public_name(name)  # while the files to push are written
                return super().push_to_hub(repo_id, **{**options, "model_card_kwargs": {"prompt": repo_id}})
            finally:
                self.source.name = name

    @classmethod
    def from_pretrained(
        cls,
        prompt: str | Path,
        *,
        source: str | None = None,
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
            source: Name of the source where it is found under another one here, such as a folder elsewhere; its
                weights must be the same.
            revision: Branch, tag or commit of the prompt on the hub; the source's own stands in the prompt.
            precision: fp32, bf16 or fp16, of the frozen network only.
            device: Where it runs; the CPU when None.
            share_border: As for the class.
            local_files_only: Take what the local hub cache holds, of prompt and source.
            download: token, cache_dir and force_download, for the prompt's own files.

        Raises:
            UserError: There is no whole prompt, the source is not to be had, or it has other weights.
        """
        folder = find_artifact(prompt, revision, local_files_only, **download)
        config, tensors = read_artifact(folder)
        wanted = config["source"]
        where = repr(str(prompt))
        name = source or wanted["name"]
        try:
            frozen = load_source(
                name,
                canvas=wanted["canvas"],
                class_names=wanted["class_names"],
                templates=wanted["templates"],
                precision=precision,
                device=device,
                revision=None if source else wanted["revision"],
                local_files_only=local_files_only,
            )
        except UserError as error:
            hint = "; where that model lies elsewhere, give its name as `source`" if is_local(name) else ""
            raise UserError(f"prompt {where}: {error}{hint}") from error
        if frozen.fingerprint != wanted["fingerprint"]:
            raise UserError(
                f"prompt {where} was made for {wanted['name']!r} with weights {wanted['fingerprint']}, "
                f"and these are {frozen.fingerprint}: another version of the model"
            )
        try:
            settings, mapping = dict(config["prompt"]), dict(config["mapping"])
            visual = PROMPTS.get(settings.pop("kind"))(**settings)
            mapping = MAPPINGS.get(mapping.pop("kind"))(**mapping)
            classifier = cls(visual, frozen, mapping, config["class_names"], share_border)
        except UserError as error:
            raise UserError(f"prompt {where}: {error}") from error
        except Exception as error:  # whatever a constructor makes of values that are not its own
            raise UserError(f"prompt {where}: config.json does not describe a prompt: {error}") from error
        own = _artifact_tensors(classifier)
        if own.keys() != tensors.keys():
            odd = ", ".join(sorted(own.keys() ^ tensors.keys()))
            raise UserError(f"prompt {where}: model.safetensors has missing or extra tensors: {odd}")
        for name, value in own.items():
            if value.shape != tensors[name].shape or value.dtype != tensors[name].dtype:
                raise UserError(
                    f"prompt {where}: tensor {name!r} is {tensors[name].dtype} {tuple(tensors[name].shape)}, "
                    f"not {value.dtype} {tuple(value.shape)}"
                )
        index = tensors["mapping.source_index"]
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < len(frozen.labels):
            raise UserError(f"prompt {where}: the mapping names labels outside 0..{len(frozen.labels) - 1}")
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(tensors[name])
        results = config.get("results")
        classifier.results = results if isinstance(results, dict) else None
        classifier._home = folder
        return classifier.to(frozen.mean.device).eval()


def _artifact_tensors(classifier: PromptedClassifier) -> dict[str, Tensor]:
    """Return the tensors of an artefact by name: the prompt's and the mapping's."""
    parts = {"prompt": classifier.prompt, "mapping": classifier.mapping}
    return {
        f"{part}.{name}": value
        for part, module in parts.items()
        for name, value in module.state_dict().items()
    }


def _is_batch(images: Any) -> bool:
    single = isinstance(images, (str, bytes, bytearray, memoryview)) or hasattr(images, "getexif")
    return not single and not (hasattr(images, "ndim") and images.ndim < 4)


def source_from_config(
    config: SourceConfig,
    labels: Callable[[], LabelSpace] | None = None,
    device: str | torch.device | None = None,
) -> Source:
    """Return the source that a config names; ``labels`` makes the label space where it is a CLIP."""
    source = load_source(
        config.name,
        canvas=config.canvas,
        labels=labels,
        precision=config.precision,
        revision=config.revision,
        local_files_only=config.local_files_only,
        device=device,
    )
    if config.compile:
        source.compile_network()
    return source


def text_label_space(config: MappingConfig, class_names: Sequence[str]) -> LabelSpace:
    """Return the label space that a config describes for a CLIP and a task's class names."""
    templates = config.templates or (PAPER_FIRST if config.kind == "identity" else "paper")
    return LabelSpace.from_templates(
        resolve_templates(templates), text_class_names(class_names, config.class_names)
    )


def build_classifier(
    config: RunConfig,
    class_names: Sequence[str],
    device: str | torch.device | None = None,
    empty: str | None = None,
) -> PromptedClassifier:
    """Return the untrained classifier that a config describes.

    Args:
        config: ``source``, ``prompt``, ``mapping`` and ``seed`` rule.
        class_names: The task's.
        device: Where it runs; the CPU when None.
        empty: Where the task's images hold nothing (``Task.empty``), so that a padding prompt acts there too.
    """
    source = source_from_config(config.source, lambda: text_label_space(config.mapping, class_names), device)
    if config.mapping.templates is not None and not source.labels.is_text:
        raise UserError(f"mapping.templates: {source.name!r} has a closed label set and no text tower")
    prompt = build_prompt(config.prompt, source.canvas, source.preprocessing.std, empty)
    mapping = build_mapping(config.mapping, source.labels, class_names, config.seed)
    share = config.prompt.share_border
    return PromptedClassifier(prompt, source, mapping, class_names, share).to(source.mean.device)
