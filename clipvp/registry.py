"""Names that users type, and the errors they get when a name or a value is wrong.

This module imports nothing heavy: an error about a name must not wait for torch. A built-in entry is an ``Entry``,
which says where its code is and is imported when it is first used.
"""

from __future__ import annotations

import ast
import difflib
import sys
import warnings
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

_LARGEST = 3.4e38  # what float32 holds
_LISTED_WHOLE, _FEW = 12, 5  # names in an error: up to so many all of them, else only so many


class UserError(ValueError):
    """Something the user gave is wrong; the message alone must be enough to correct it."""

    def _render_traceback_(
        self,
    ) -> list[str]:  # what a notebook shows: the message, without our own lines of code
        return [f"{type(self).__name__}: {self}"]


def warn_renamed(old: str, new: str) -> None:
    """Warn that a name is an old one, with the new one; what it named still works."""
    warnings.warn(f"{old} is deprecated; use {new}", FutureWarning, stacklevel=3)


def nearest(value: str, allowed: Iterable[str]) -> str:
    """Return the end of an error sentence: the nearest match, then what is allowed; of a long list the nearest few.

    Upper and lower case count as the same.

    >>> nearest("papr", ["paper", "openai"])
    "did you mean 'paper'? allowed: paper, openai"
    """
    names = [str(name) for name in allowed]
    by_lower_case = {name.lower(): name for name in names}
    value = str(value).lower()
    close = difflib.get_close_matches(value, by_lower_case, n=1, cutoff=0.5)
    hint = f"did you mean {by_lower_case[close[0]]!r}? " if close else ""
    if len(names) <= _LISTED_WHOLE:
        return f"{hint}allowed: {', '.join(names)}"
    few = [by_lower_case[name] for name in difflib.get_close_matches(value, by_lower_case, n=_FEW, cutoff=0)]
    return f"{hint}allowed: {', '.join(few)} and {len(names) - len(few)} more"


def check_choice(what: str, value: str, allowed: Iterable[str]) -> None:
    """Raise ``UserError`` when ``value`` is not one of ``allowed``; ``what`` names the setting."""
    allowed = list(allowed)
    if value not in allowed:
        raise UserError(f"{what}: unknown value {value!r}; {nearest(value, allowed)}")


def check_positive(what: str, value: float | None, zero: bool = False) -> None:
    """Raise ``UserError`` when a number is not above 0, or not 0 or more with ``zero``; None passes."""
    if value is not None and not (0 <= value <= _LARGEST and (zero or value != 0)):  # not-a-number fails too
        limits = f"{'>= 0' if zero else '> 0'}{f', at most {_LARGEST:g}' if value > 0 else ''}"
        raise UserError(f"{what}: {value} is not allowed; give a number {limits}")


class Entry(NamedTuple):
    """Where a built-in entry is: a module, a class or function in it, and the dataclass of its config keys."""

    module: str
    name: str
    config: str | None = None


class Registry:
    """A table from a name to a class or function, and to the dataclass of its config keys.

    Args:
        what: What the entries are, in the singular, for error messages ("prompt").
        entries: The built-in ones.
    """

    def __init__(self, what: str, entries: dict[str, Entry]):
        self.what = what
        self._entries = dict(entries)
        self._loaded: dict[str, Any] = {}
        self._configs: dict[str, type | None] = {}

    def names(self) -> list[str]:
        return sorted(self._entries.keys() | self._loaded.keys())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self._entries or name in self._loaded)

    def check(self, name: str) -> None:
        """Raise ``UserError`` with the nearest names when ``name`` is not registered."""
        if name not in self:
            raise UserError(f"unknown {self.what} {name!r}; {nearest(name, self.names())}")

    def get(self, name: str) -> Any:
        """Return the class or function of a name; a built-in one is imported at its first use."""
        self.check(name)
        if name not in self._loaded:
            entry = self._entries[name]
            self._loaded[name] = getattr(import_module(entry.module), entry.name)
        return self._loaded[name]

    def config(self, name: str) -> type | None:
        """Return the dataclass of a name's config keys, without importing torch; None where it has none of its own."""
        self.check(name)
        if name not in self._configs:
            entry = self._entries[name]
            self._configs[name] = _class_alone(entry.module, entry.config) if entry.config else None
        return self._configs[name]

    def plugin(self, name: str) -> str | None:
        """Return the file or module that registered a name from outside; None for a built-in name."""
        if name in self._entries or name not in self._loaded:
            return None
        module = self._loaded[name].__module__
        file = getattr(sys.modules.get(module), "__file__", None)
        return Path(file).name if file and "." not in module else module

    def register(self, name: str, entry: Any = None, *, config: type | None = None) -> Any:
        """Add an entry, as a call or as a decorator; a name that is taken is refused.

        Args:
            name: What users type.
            entry: The class or function. A class gets ``name`` as its ``kind``.
            config: The dataclass of its config keys, a subclass of the section's own dataclass.
        """
        if entry is None:
            return lambda decorated: self.register(name, decorated, config=config)
        if name in self:
            raise ValueError(f"{self.what} {name!r} is registered already")
        if isinstance(entry, type):
            entry.kind = name  # type: ignore[attr-defined]
        self._loaded[name], self._configs[name] = entry, config
        return entry

    def unregister(self, name: str) -> None:
        """Remove an entry that ``register`` added."""
        if name not in self._entries:
            self._loaded.pop(name, None)
            self._configs.pop(name, None)


@cache
def _class_alone(module: str, name: str) -> Any:
    """Return a class of a module without running the rest of the module, which may import torch.

    Only the class itself runs, and the imports and definitions that it uses; what it uses of other modules of the same
    folder is read in the same way.
    """
    if module in sys.modules:
        return getattr(sys.modules[module], name)
    package = module.rpartition(".")[0]
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None  # of a built-in entry
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    # Named after the package, which is imported: dataclasses look their module up.
    space: dict[str, Any] = {"__name__": package, "__package__": package}
    wanted, kept = {name, "annotations"}, []
    for node in reversed(tree.body):  # what a definition uses is above it
        if not (found := wanted & _bound(node)):
            continue
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            space |= {used: _class_alone(f"{package}.{node.module}", used) for used in found}
        else:
            kept.append(node)
            wanted |= {used.id for used in ast.walk(node) if isinstance(used, ast.Name)}
    exec(compile(ast.Module(kept[::-1], []), spec.origin, "exec"), space)
    return space[name]


def _bound(node: ast.stmt) -> set[str]:
    """Return the names that a statement of a module binds."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        return {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    if isinstance(node, ast.Assign):
        return {target.id for target in node.targets if isinstance(target, ast.Name)}
    return {node.name} if isinstance(node, (ast.ClassDef, ast.FunctionDef)) else set()


PROMPTS = Registry(
    "prompt",
    {
        "padding": Entry("clipvp.prompts.padding", "PaddingPrompt", "PaddingConfig"),
        "border": Entry("clipvp.prompts.border", "BorderPrompt", "BorderConfig"),
        "patch": Entry("clipvp.prompts.patch", "PatchPrompt", "PatchConfig"),
        "full": Entry("clipvp.prompts.full", "FullPrompt", "FullConfig"),
        "coordinator": Entry("clipvp.prompts.coordinator", "CoordinatorPrompt", "CoordinatorConfig"),
        "low_rank": Entry("clipvp.prompts.low_rank", "LowRankPrompt", "LowRankConfig"),
        "scaled": Entry("clipvp.prompts.scaled", "ScaledPrompt", "ScaledConfig"),
        "smm": Entry("clipvp.prompts.smm", "SMMPrompt", "SMMConfig"),
        "none": Entry("clipvp.prompts.none", "NoPrompt", "NoPromptConfig"),
        "several": Entry("clipvp.prompts.several", "SeveralPrompts"),
        "dga": Entry("clipvp.prompts.dga", "DgaPrompt", "DgaConfig"),
    },
)
MAPPINGS = Registry(
    "mapping",
    {
        "random": Entry("clipvp.mappings.random", "RandomMapping", "RandomConfig"),
        "frequency": Entry("clipvp.mappings.frequency", "FrequencyMapping", "FrequencyConfig"),
        "identity": Entry("clipvp.mappings.identity", "IdentityMapping", "IdentityConfig"),
        "blm": Entry("clipvp.mappings.bayesian", "BayesianMapping", "BayesianConfig"),
        "blm_plus": Entry("clipvp.mappings.bayesian", "SoftBayesianMapping", "SoftBayesianConfig"),
        "top_k_mean": Entry("clipvp.mappings.top_k_mean", "TopKMeanMapping", "TopKMeanConfig"),
        "semantic": Entry("clipvp.mappings.semantic", "SemanticMapping", "SemanticConfig"),
        "linear": Entry("clipvp.mappings.linear", "LinearMapping", "LinearConfig"),
        "logistic": Entry("clipvp.mappings.logistic", "LogisticMapping", "LogisticConfig"),
        "prototypes": Entry("clipvp.mappings.prototypes", "PrototypesMapping", "PrototypesConfig"),
        "lp_plus_plus": Entry("clipvp.mappings.lp_plus_plus", "LpPlusPlusMapping", "LpPlusPlusConfig"),
        "text_counts": Entry("clipvp.mappings.text_counts", "TextCountsMapping", "TextCountsConfig"),
        "text_pool": Entry("clipvp.mappings.text_pool", "TextPoolMapping", "TextPoolConfig"),
        "tip_adapter": Entry("clipvp.mappings.tip_adapter", "TipAdapterMapping", "TipAdapterConfig"),
        "dga": Entry("clipvp.mappings.dga", "DgaMapping", "DgaMappingConfig"),
        "folded": Entry("clipvp.mappings.folded", "FoldedMapping"),
        "text_mixing": Entry("clipvp.mappings.text_mixing", "TextMixingMapping", "TextMixingConfig"),
    },
)
OPTIMIZERS = Registry(
    "optimiser",
    {
        "adam": Entry("clipvp.training.optim", "adam", "AdamConfig"),
        "adamw": Entry("clipvp.training.optim", "adamw", "AdamWConfig"),
        "sgd": Entry("clipvp.training.optim", "sgd", "SGDConfig"),
        "normalized_sgd": Entry("clipvp.training.normalized_sgd", "normalized_sgd", "NormalizedSGDConfig"),
    },
)
GRADIENTS = Registry(
    "gradient rule",
    {
        "backpropagation": Entry("clipvp.training.gradients", "Backpropagation"),
        "spsa": Entry("clipvp.training.spsa", "SPSA", "SPSAConfig"),
        "random_directions": Entry(
            "clipvp.training.random_directions", "RandomDirections", "RandomDirectionsConfig"
        ),
    },
)
AUGMENTATIONS = Registry(
    "augmentation",
    {
        "none": Entry("clipvp.data.augment.basic", "none"),
        "flip": Entry("clipvp.data.augment.basic", "flip"),
        "crop_flip": Entry("clipvp.data.augment.basic", "crop_flip"),
        "random_resized_crop": Entry("clipvp.data.augment.crops", "random_resized_crop"),
        "short_side_crop": Entry("clipvp.data.augment.crops", "short_side_crop"),
        "squash_crop": Entry("clipvp.data.augment.crops", "squash_crop"),
        "trivial": Entry("clipvp.data.augment.trivial", "trivial"),
    },
)
SOURCES = Registry(
    "source scheme",
    {
        "timm": Entry("clipvp.sources.closed", "load_timm"),
        "hf": Entry("clipvp.sources.hf", "load_hf"),
        "open_clip": Entry("clipvp.sources.open_clip", "load_open_clip"),
        "offline": Entry("clipvp.sources.offline", "load_offline"),
        "distilled": Entry("clipvp.sources.distilled", "load_distilled"),
        "onnx": Entry("clipvp.sources.onnx_file", "load_onnx", "OnnxConfig"),
        "http": Entry("clipvp.sources.http_service", "load_http", "HttpConfig"),
        "https": Entry("clipvp.sources.http_service", "load_http", "HttpConfig"),
    },
)
WEIGHTS = Registry(
    "weights",
    {
        "frozen": Entry("clipvp.weights.base", "Weights", "FrozenConfig"),
        "full": Entry("clipvp.weights.full", "FullWeights", "FullConfig"),
        "lora": Entry("clipvp.weights.lora", "LoraWeights", "LoraConfig"),
    },
)
TASKS = Registry(
    "task",
    {
        "digits": Entry("clipvp.data.loaders.embedded", "load_digits"),
        "mnist5k": Entry("clipvp.data.loaders.embedded", "load_mnist5k"),
        "abide": Entry("clipvp.data.loaders.abide", "load_abide"),
        **dict.fromkeys(
            (  # those of clipvp.data.catalog
                *("flowers102", "dtd", "ucf101", "food101", "gtsrb", "eurosat", "oxfordpets", "stanfordcars"),
                *("sun397", "cifar10", "cifar100", "svhn", "caltech101", "fgvc_aircraft", "resisc45"),
                *("imagenet", "imagenet_v2", "imagenet_sketch", "imagenet_a", "imagenet_r"),
            ),
            Entry("clipvp.data.loaders.registered", "load_registered"),
        ),
    },
)
