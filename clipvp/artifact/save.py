"""Save, load and share a prompt: prompt, mapping and what trained of the source's weights, without the source.

What is loaded is data, never code.
"""

from __future__ import annotations

import copy
import shutil
import tempfile
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..cpu import float32_default
from ..images import Reading
from ..labels.space import LabelSpace
from ..mappings.base import LabelMapping
from ..prompts.base import VisualPrompt
from ..registry import MAPPINGS, PROMPTS, SOURCES, WEIGHTS, Registry, UserError
from ..results.tables import MOST_LINKS, mapping_rows
from ..sources.base import Source
from ..sources.hub import hub_access
from ..sources.load import load_source
from ..sources.origin import is_local, origin, public_name
from ..weights.base import Weights
from .card import write_card
from .format import find_artifact, read_artifact, write_artifact

if TYPE_CHECKING:
    from ..model import PromptedClassifier

_TOLERANCE = 1e-6  # of mean and std, which libraries may round to float32


def artifact_tensors(classifier: PromptedClassifier) -> dict[str, Tensor]:
    """Return the tensors of an artefact by name: the prompt's, the mapping's, and what trained of the source's."""
    return _tensors(classifier.prompt, classifier.mapping, classifier.source)


def _tensors(prompt: VisualPrompt, mapping: LabelMapping, source: Source) -> dict[str, Tensor]:
    parts = {
        "prompt": prompt.state_dict(),
        "mapping": mapping.state_dict(),
        "source": source.weights.tensors(source.network),
    }
    return {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}


def artifact_config(classifier: PromptedClassifier, public: bool = False) -> dict[str, Any]:
    """Return what ``config.json`` of a saved prompt says, without its format and digest.

    Args:
        classifier: Trained.
        public: Leave out the path of a source in a local folder.
    """
    prompt, source, mapping = classifier.prompt, classifier.source, classifier.mapping
    used = (PROMPTS, prompt.kind), (MAPPINGS, mapping.kind), (SOURCES, source.name.partition(":")[0])
    used += ((WEIGHTS, source.weights.kind),)
    plugins = [registry.plugin(name) for registry, name in used]
    return {
        "prompt": {"kind": prompt.kind, **prompt.settings},
        "mapping": {"kind": mapping.kind, **mapping.settings},
        "weights": {"kind": source.weights.kind, **source.weights.settings},
        "source": {
            "name": public_name(source.name) if public else source.name,
            "revision": source.revision,
            "fingerprint": source.fingerprint,
            "canvas": list(source.canvas),
            "outputs": source.outputs,
            "options": source.options,
            "labels": source.labels.to_dict(),
            "text_tower": source.has_logits,
            **dict(zip(("repository", "license"), origin(source.name), strict=True)),
        },
        "class_names": classifier.class_names,
        "preprocessing": _preprocessing(prompt, source, classifier.reading),
        "plugins": sorted({plugin for plugin in plugins if plugin}),
        "views": prompt.views,
        # For people: loading takes the mapping from the tensors, and reads neither table nor results.
        "mapping_table": mapping_rows(mapping.links(MOST_LINKS), source.labels.names, classifier.class_names),
        "results": classifier.results,
    }


def _preprocessing(prompt: VisualPrompt, source: Source, reading: Reading) -> dict[str, Any]:
    known = source.preprocessing
    resize = replace(prompt.resize(source.resize), reading=reading).to_dict()
    return {"resize": resize, "mean": list(known.mean), "std": list(known.std)}


def save_prompt(
    classifier: PromptedClassifier, folder: Path, *, public: bool = False, name: str | None = None
) -> None:
    """Write ``config.json``, ``model.safetensors`` and a model card, and copy the pictures of a loaded prompt.

    Args:
        classifier: Trained.
        folder: Made where it is missing.
        public: Leave out the path of a source in a local folder.
        name: The hub id that the card tells how to load; a placeholder when None.

    Raises:
        UserError: ``folder`` is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{str(folder)!r} is a file, not a folder")
    write_artifact(folder, artifact_config(classifier, public), artifact_tensors(classifier))
    home = classifier.folder
    if home is not None and home.resolve() != folder.resolve():
        for picture in home.glob("*.png"):
            shutil.copyfile(picture, folder / picture.name)
    write_card(folder, name)


def push_prompt(
    classifier: PromptedClassifier,
    repo_id: str,
    *,
    private: bool | None = None,
    branch: str | None = None,
    create_pr: bool = False,
    commit_message: str = "Add a visual prompt made with clipvp",
    token: str | None = None,
) -> str:
    """Write a prompt to a repository of the hub in one commit, and return the commit's address.

    See ``PromptedClassifier.push_to_hub``.
    """
    from huggingface_hub import HfApi

    source = classifier.source.name
    if is_local(source):
        warnings.warn(
            f"push to {repo_id!r}: the source {source!r} is a local folder; others need that model too, and load "
            "the prompt with from_pretrained(..., source=NAME)",
            stacklevel=3,
        )
    with hub_access(repo_id, [repo_id], branch, False, what="push to") as offline:
        if offline:
            raise UserError(f"push to {repo_id!r}: the hub is switched off or cannot be reached")
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            save_prompt(classifier, Path(folder), public=True, name=repo_id)
            return api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                revision=branch,
                create_pr=create_pr,
                commit_message=commit_message,
            )


class SavedParts(NamedTuple):
    """What a saved prompt is made of, its tensors loaded."""

    prompt: VisualPrompt
    source: Source
    mapping: LabelMapping
    class_names: list[str]
    reading: Reading
    results: dict[str, Any] | None
    folder: Path


@float32_default()
def load_prompt(
    prompt: str | Path,
    *,
    source: str | Source | None = None,
    revision: str | None = None,
    precision: str = "fp32",
    device: str | torch.device | None = None,
    local_files_only: bool = False,
    **download: Any,
) -> SavedParts:
    """Read a saved prompt and load its source. See ``PromptedClassifier.from_pretrained``."""
    folder = find_artifact(prompt, revision, local_files_only, **download)
    config, tensors = read_artifact(folder)
    where = repr(str(prompt))
    _check_plugins(config, where)
    frozen = _load_source(config["source"], where, source, precision, device, local_files_only)
    visual, mapping, weights = (
        _build(registry, config[part], where)
        for registry, part in ((PROMPTS, "prompt"), (MAPPINGS, "mapping"), (WEIGHTS, "weights"))
    )
    if isinstance(source, Source) and any(type(one) is not Weights for one in (weights, source.weights)):
        raise UserError(
            f"prompt {where}: a source whose weights were trained is not shared with other prompts; give its name as "
            "`source`, so that it is loaded anew"
        )
    weights.apply(frozen)
    reading = _reading(config["preprocessing"], where)
    _check_preprocessing(config["preprocessing"], _preprocessing(visual, frozen, reading), where)
    own = _tensors(visual, mapping, frozen)
    if own.keys() != tensors.keys():
        odd = ", ".join(sorted(own.keys() ^ tensors.keys()))
        raise UserError(f"prompt {where}: model.safetensors has missing or extra tensors: {odd}")
    for name, value in own.items():
        if value.shape != tensors[name].shape or value.dtype != tensors[name].dtype:
            raise UserError(
                f"prompt {where}: tensor {name!r} is {tensors[name].dtype} {tuple(tensors[name].shape)}, "
                f"not {value.dtype} {tuple(value.shape)}"
            )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(tensors[name])
    index = mapping.links(MOST_LINKS).index
    if mapping.takes == "logits" and not -1 <= int(index.min()) <= int(index.max()) < len(frozen.labels):
        raise UserError(f"prompt {where}: the mapping names labels outside 0..{len(frozen.labels) - 1}")
    try:
        with torch.no_grad():
            views = () if mapping.views == 1 else (mapping.views,)
            mapping(torch.zeros(1, *views, mapping.num_source, dtype=torch.float32))
    except Exception as error:  # of any kind, as the mapping may be a plug-in's
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"prompt {where}: the mapping gives no logits; was it ever fitted? {reason}"
        ) from error
    results = config.get("results")
    results = results if isinstance(results, dict) else None
    return SavedParts(visual, frozen, mapping, config["class_names"], reading, results, folder)


def _reading(preprocessing: dict[str, Any], where: str) -> Reading:
    """Return what the files of a saved prompt's images did not say."""
    resize = preprocessing.get("resize")
    try:
        return Reading(**(resize.get("reading", {}) if isinstance(resize, dict) else {}))
    except (TypeError, UserError) as error:
        raise UserError(f"prompt {where}: preprocessing.resize.reading: {error}") from error


def _check_plugins(config: dict[str, Any], where: str) -> None:
    """Refuse a prompt whose plug-ins are not loaded. No code is imported because an artefact names it."""
    scheme = config["source"]["name"].partition(":")[0]
    used = (
        (PROMPTS, config["prompt"].get("kind")),
        (MAPPINGS, config["mapping"].get("kind")),
        (WEIGHTS, config["weights"].get("kind")),
        (SOURCES, scheme),
    )
    for registry, name in used:
        if name not in registry and config["plugins"]:
            raise UserError(
                f"prompt {where} needs the {registry.what} {name!r} of the plug-in "
                f"{' or '.join(config['plugins'])}; name its file with --plugins, or import it first"
            )


def _load_source(
    wanted: dict[str, Any],
    where: str,
    source: str | Source | None,
    precision: str,
    device: Any,
    local_files_only: bool,
) -> Source:
    name = source.name if isinstance(source, Source) else source or wanted["name"]
    try:
        texts = LabelSpace.from_dict(wanted["labels"]) if wanted["labels"] else None
        if isinstance(source, Source):
            frozen = _shared(source, texts, wanted)
        else:
            frozen = load_source(
                name,
                canvas=wanted["canvas"],
                labels=(lambda: texts) if texts else None,
                precision=precision,
                device=device,
                revision=None if source else wanted["revision"],
                local_files_only=local_files_only,
                text_tower=wanted["text_tower"],
                **wanted["options"],
            )
    except UserError as error:
        hint = "; if the model is in another folder, give its name as `source`" if is_local(name) else ""
        raise UserError(f"prompt {where}: {error}{hint}") from error
    if frozen.fingerprint != wanted["fingerprint"]:
        raise UserError(
            f"prompt {where} was made for {wanted['name']!r} with weights {wanted['fingerprint']}, "
            f"and these are {frozen.fingerprint}: another version of the model"
        )
    frozen.outputs = wanted["outputs"]
    return frozen


def _shared(source: Source, texts: LabelSpace | None, wanted: dict[str, Any]) -> Source:
    """Return a source that is loaded already, for one more prompt: the same modules, with ``outputs`` of its own."""
    given = list(source.canvas), source.labels if source.labels.is_text else None, source.has_logits
    for what, have, needed in zip(
        ("canvas", "texts", "text tower"),
        given,
        (list(wanted["canvas"]), texts, wanted["text_tower"]),
        strict=True,
    ):
        if have != needed:
            raise UserError(
                f"the given source {source.name!r} has another {what} than the prompt was made for"
            )
    return copy.copy(source)


def _build(registry: Registry, section: dict[str, Any], where: str) -> Any:
    """Return the prompt or mapping that a section of the config describes."""
    settings = dict(section)
    try:
        return registry.get(settings.pop("kind", None))(**settings)
    except UserError as error:
        raise UserError(f"prompt {where}: {error}") from error
    except Exception as error:  # a constructor may raise anything on wrong values
        raise UserError(f"prompt {where}: config.json does not describe a prompt: {error}") from error


def _check_preprocessing(saved: dict[str, Any], own: dict[str, Any], where: str) -> None:
    """Refuse a source that resizes or normalises images otherwise than the prompt was trained with."""
    for key in ("resize", "mean", "std"):
        before, now = saved.get(key), own[key]
        if not (before == now if key == "resize" else _close(before, now)):
            raise UserError(
                f"prompt {where} was trained with the preprocessing {key} {before}, and this source has {now}"
            )


def _close(one: Any, other: list[float]) -> bool:
    try:
        return all(abs(a - b) <= _TOLERANCE for a, b in zip(one, other, strict=True))
    except (TypeError, ValueError):
        return False
