"""A prompt saved, loaded and shared: what ``PromptedClassifier`` writes of itself, and how it is made of that again.

Only prompt and mapping are saved, and reading them is strict: data, never code.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import ModelCard, ModelHubMixin
from torch import Tensor, nn

from ..registry import MAPPINGS, PROMPTS, UserError
from ..sources.hub import hub_access
from ..sources.load import load_source
from ..sources.origin import is_local, origin, public_name
from .card import PICTURES, card_text
from .format import CARD, find_artifact, read_artifact, write_artifact

Own = TypeVar("Own", bound="SavedPrompt")


class SavedPrompt(ModelHubMixin):
    """What ``PromptedClassifier`` has in common with any model of the hub: ``save_pretrained``, ``from_pretrained`` and
    ``push_to_hub``."""

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
        write_artifact(save_directory, self.artifact_config(), artifact_tensors(self))
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
        cls: type[Own],
        prompt: str | Path,
        *,
        source: str | None = None,
        revision: str | None = None,
        precision: str = "fp32",
        device: str | torch.device | None = None,
        share_border: bool = True,
        local_files_only: bool = False,
        **download: Any,
    ) -> Own:
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
        own = artifact_tensors(classifier)
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


def artifact_tensors(classifier: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of an artefact by name: the prompt's and the mapping's."""
    parts = {"prompt": classifier.prompt, "mapping": classifier.mapping}
    return {
        f"{part}.{name}": value
        for part, module in parts.items()
        for name, value in module.state_dict().items()
    }
