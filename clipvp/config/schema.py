"""What a run is: nested dataclasses that YAML files, the command line and Python fill alike.

A section whose keys depend on a choice (``prompt.kind``, ``optim.name``) has here the keys that all choices share; the
dataclass of a choice is defined beside its method. Nothing here imports torch, so that ``--help`` and an error about a
value take no longer than starting Python.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from ..registry import (
    AUGMENTATIONS,
    GRADIENTS,
    MAPPINGS,
    OPTIMIZERS,
    PROMPTS,
    SOURCES,
    TASKS,
    WEIGHTS,
    Registry,
    UserError,
    check_choice,
    check_positive,
)

NEVER = "never"
# As accelerate calls them.
TRACKERS = (
    "aim",
    "clearml",
    "comet_ml",
    "dvclive",
    "mlflow",
    "swanlab",
    "tensorboard",
    "trackio",
    "wandb",
)


class Section(NamedTuple):
    """A section of a config whose keys depend on one of them.

    Args:
        name: The section's.
        base: The dataclass of the keys that all choices share.
        registry: The choices.
        key: The key whose value chooses.
        chosen: The key's value to the registered name; to None where only the shared keys exist.
    """

    name: str
    base: type
    registry: Registry
    key: str
    chosen: Callable[[str], str | None]

    def config_class(self, value: str) -> type:
        """Return the dataclass of the keys that a value of ``key`` allows."""
        name = self.chosen(value)
        return (self.registry.config(name) if name is not None else None) or self.base

    def keys(self, value: str) -> list[str]:
        return [item.name for item in fields(self.config_class(value))]

    def owners(self, key: str) -> list[str]:
        """Return the registered names that have a key."""
        configs = {name: self.registry.config(name) for name in self.registry.names()}
        return [
            name for name, config in configs.items() if config and key in [i.name for i in fields(config)]
        ]

    def unknown(self, key: str, value: str) -> str:
        """Return the error of a key that a value of ``key`` does not allow."""
        keys, owners = self.keys(value), self.owners(key)
        close = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
        hint = f"; did you mean '{self.name}.{close[0]}'?" if close else ""
        hint = f"; {key} is a key of {', '.join(owners)}" if owners else hint
        choice = f"{self.name}.{self.key} is {value!r}, whose keys are {', '.join(keys)}"
        return f"unknown key '{self.name}.{key}'{hint}; {choice}"


@dataclass
class _Choice:  # a dataclass, as jsonargparse wants of the bases of one
    """Base of sections whose keys depend on a choice: ``PromptConfig(kind="border")`` is a ``BorderConfig``."""

    def __new__(cls, *given: Any, **values: Any) -> Any:
        section = next((section for section in SECTIONS.values() if section.base is cls), None)
        if section is None:  # the dataclass of one choice
            return super().__new__(cls)
        names = [item.name for item in fields(cls)]
        default = next(item.default for item in fields(cls) if item.name == section.key)
        value = {**values, **dict(zip(names, given, strict=False))}.get(section.key, default)
        chosen = section.config_class(value)
        if unknown := sorted(values.keys() - section.keys(value)):
            raise UserError(section.unknown(unknown[0], value))
        return super().__new__(chosen)


@dataclass
class SourceConfig(_Choice):
    """The frozen model.

    Args:
        name: ``scheme:model``, see clipvp list sources and ``clipvp.load_source``.
        canvas: Input size in pixels, a number for a square or [height, width]; the model's own when empty.
        precision: Arithmetic of the frozen part (fp32, bf16, fp16); the prompt and the loss stay in fp32.
        compile: Compile the network (torch.compile); has no effect where the border is shared or a mapping takes
            features of a closed label set.
        revision: Branch, tag or commit of a hub model.
        local_files_only: Use only what the hub cache holds, without asking the network.
        outputs: What the mapping takes, logits or features; the mapping's own choice when empty.
    """

    name: str = "offline:lite0"
    canvas: int | list[int] | None = None
    precision: str = "fp32"
    compile: bool = False
    revision: str | None = None
    local_files_only: bool = False
    outputs: str | None = None

    def __post_init__(self) -> None:
        if self.outputs is not None:
            check_choice("source.outputs", self.outputs, ["logits", "features"])
        check_choice("source.precision", self.precision, ["fp32", "bf16", "fp16"])
        sides = self.canvas if isinstance(self.canvas, list) else [self.canvas]
        if isinstance(self.canvas, list) and len(self.canvas) != 2:
            raise UserError(f"source.canvas: {self.canvas} is not a size; give one number or [height, width]")
        for side in sides:
            check_positive("source.canvas", side)


@dataclass
class WeightsConfig(_Choice):
    """Which of the source's own weights train.

    Args:
        kind: frozen, full (fine-tuning), lora (adapters, LoRA) or a plug-in's.
    """

    kind: str = "frozen"

    def __post_init__(self) -> None:
        WEIGHTS.check(self.kind)


@dataclass
class PromptConfig(_Choice):
    """The visual prompt.

    Args:
        kind: A registered prompt (padding, border, patch, full, none and others, see clipvp list prompts) or a
            plug-in's.
        share_border: Compute once a batch what the network makes of pixels that all images share (padding); faster,
            equal up to rounding.
        views: Prompts of this kind, each for a part of a CLIP's texts; an image is encoded once under each.
        view_by: How texts are divided among the prompts: clusters (of their embeddings) or groups (of mapping.texts).
    """

    kind: str = "padding"
    share_border: bool = True
    views: int = 1
    view_by: str = "clusters"

    def __post_init__(self) -> None:
        PROMPTS.check(self.kind)
        check_positive("prompt.views", self.views)
        check_choice("prompt.view_by", self.view_by, ["clusters", "groups"])


@dataclass
class MappingConfig(_Choice):
    """From what the source gives to target logits.

    Args:
        kind: A registered mapping (random for RLM, frequency for FLM and ILM, logistic for the linear probe and others,
            see clipvp list mappings) or a plug-in's.
        templates: For CLIP, a set's name, one template, a list or a text file, one a line; when empty the paper's 81,
            and for identity "This is a photo of a {}.".
        texts: For CLIP, descriptions of each class: a JSON object of class names and lists of texts, a CSV file (class,
            text), a folder of such files or a map of names to files, each of which is a group; or cifar10, digits or
            waffle (random words, a control). With templates both are used.
        texts_per_class: Texts drawn of each class and group; all when empty.
        phrase_template: For files of phrases ("six petals"), what they are put into, with {} for the class and {text}
            for the phrase: "A photo of a {}, which is/has {text}." is WaffleCLIP's; the fitting verb is chosen.
        class_names: For CLIP, the names to put into templates: a map of the task's class names, a list with one name a
            class, or a file of either (.txt, .yaml, .json).
    """

    default_templates = "paper"  # not a key: what an empty ``templates`` means for the kind

    kind: str = "frequency"
    templates: str | list[str] | None = None
    texts: str | dict[str, str] | None = None
    texts_per_class: int | None = None
    phrase_template: str | None = None
    class_names: str | list[str] | dict[str, str] | None = None

    def __post_init__(self) -> None:
        MAPPINGS.check(self.kind)
        check_positive("mapping.texts_per_class", self.texts_per_class)
        if self.texts is not None and not self.texts:
            raise UserError(
                f"mapping.texts: {self.texts!r} is empty; give a file, a folder, a map {{GROUP: FILE, ...}} or a name"
            )
        for key in ("texts_per_class", "phrase_template"):
            if getattr(self, key) is not None and self.texts is None:
                raise UserError(f"mapping.{key}: {getattr(self, key)} needs mapping.texts, which is empty")
        template = self.phrase_template
        if template is not None and not template.count("{}") == template.count("{text}") == 1:
            raise UserError(
                f"mapping.phrase_template: {template!r} needs one {{}} for the class and one {{text}} for the phrase"
            )


@dataclass
class DataConfig(_Choice):
    """The target task.

    Args:
        name: A registered task, a folder of images, a folder with a split file of CoOp, a table (.csv, .tsv, .parquet,
            .json, .jsonl) or a folder of them, or a hub data set.
        folder: Folder of a registered task's files in CoOp's layout; they are read instead of the hub's.
        classes: all, base (the first half of the classes, in the order of their labels) or new (the rest).
        shots: Training images a class (few-shot); validation then has min(shots, 4) a class.
        max_train: Most training images; the classes keep their shares.
        max_test: Most test images; the classes keep their shares.
        val: Share of the training images carved for validation where the task has none; 0 carves none.
        test: Share of the training images carved for testing where the task has no test split, for every seed
            the same.
        on_error: What an unreadable image does: raise (all are listed) or skip (left out and counted).
        bits: Bits of the samples, 1 to 32, where images have more than 8 and their files do not say it: 12 for white at
            4095.
        background: Colour beneath transparent pixels, a name such as white, or #rrggbb; alpha is dropped when empty.
        image_column: Column of images in a table; found by its type or its name when empty.
        label_column: Column of labels in a table; found by its type or its name when empty.
        split_column: Column of split names in a table; found by its name when empty, not used when none.
        class_names: Names for classes that are numbers: a list in their order; a map of a class to its name; or a file
            of either (.txt, .yaml, .json).
        names: How class names are spelled: own, or reference (as in the code of ILM-VP: lower case, spaces for hyphens
            and underscores, digits for SVHN, a list of its own for GTSRB).
        config: Configuration of a hub data set.
        revision: Branch, tag or commit of a hub data set.
        train_split: Split to train on; of an image folder, "." takes every folder for a class.
        val_split: Split to validate on; carved when empty and the task has none; none uses no split.
        test_split: Split to test on; none uses no split, and the test images are carved from train.
        cache_dir: Folder of decoded images; the user's cache folder when empty.
        cache_side: Most pixels of the shorter side of decoded originals, which train.augment crops from; larger images
            are reduced to it.
    """

    name: str = "mnist5k"
    folder: str | None = None
    classes: str = "all"
    shots: int | None = None
    max_train: int | None = None
    max_test: int | None = None
    val: float = 0.1
    test: float = 0.2
    on_error: str = "raise"
    bits: int | None = None
    background: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    class_names: str | list[str] | dict[str, str] | None = None
    names: str = "own"
    config: str | None = None
    revision: str | None = None
    train_split: str | None = None
    val_split: str | None = None
    test_split: str | None = None
    cache_dir: str | None = None
    cache_side: int = 256

    def __post_init__(self) -> None:
        check_choice("data.on_error", self.on_error, ["raise", "skip"])
        check_choice("data.classes", self.classes, ["all", "base", "new"])
        check_choice("data.names", self.names, ["own", "reference"])
        for name in ("shots", "max_train", "max_test", "cache_side"):
            check_positive(f"data.{name}", getattr(self, name))
        if not 0 <= self.val < 1:
            raise UserError(f"data.val: {self.val} is not a share; give a number from 0 to below 1")
        if not 0 < self.test < 1:
            raise UserError(f"data.test: {self.test} is not a share; give a number between 0 and 1")
        if self.shots is not None and self.max_train is not None:
            raise UserError("data.shots and data.max_train both limit the training images; give one of them")
        if not self.name:
            raise UserError(
                f"data.name is empty; give a folder, a file, a hub data set or one of {TASKS.names()}"
            )


@dataclass
class OptimConfig(_Choice):
    """The optimiser and its schedule.

    Args:
        name: A registered optimiser: adam, adamw, sgd, normalized_sgd or a plug-in's.
        lr: Learning rate; the schedule multiplies it.
        weight_decay: Weight decay.
        schedule: multistep (a factor at each milestone), cosine (to zero, per step), cosine_epoch, power (lr / (k +
            1) ** power at step k = 1, 2, ...), polynomial (to zero, the share of steps to come ** power) or constant.
        milestones: Shares of the epochs after which the rate falls (multistep).
        gamma: Factor at each milestone (multistep).
        power: Exponent (power, polynomial).
        warmup: Share of all steps in which the rate rises linearly to lr.
        warmup_steps: The same as a number of steps.
        groups: Keys of this section that differ for a group of parameters, such as {mapping: {lr: 0.001}}; the groups
            are prompt, mapping, source (fine-tuning) and those of the method.
    """

    name: str = "adam"
    lr: float = 0.01
    weight_decay: float = 0.0
    schedule: str = "multistep"
    milestones: list[float] = field(default_factory=lambda: [0.5, 0.72])
    gamma: float = 0.1
    power: float = 0.4
    warmup: float = 0.0
    warmup_steps: int | None = None
    groups: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        OPTIMIZERS.check(self.name)
        schedules = ["multistep", "cosine", "cosine_epoch", "power", "polynomial", "constant"]
        check_choice("optim.schedule", self.schedule, schedules)
        check_positive("optim.lr", self.lr)
        for name in ("weight_decay", "gamma", "power", "warmup"):
            check_positive(f"optim.{name}", getattr(self, name), zero=True)
        if not all(0 <= share <= 1 for share in self.milestones):
            raise UserError(f"optim.milestones: {self.milestones} are not shares of the epochs; give 0 to 1")
        if self.warmup > 1:
            raise UserError(f"optim.warmup: {self.warmup} is not a share of the steps; give 0 to 1")
        check_positive("optim.warmup_steps", self.warmup_steps)
        if self.warmup and self.warmup_steps:
            raise UserError(
                "optim.warmup and optim.warmup_steps both say how long the rate rises; give one of them"
            )
        for group in self.groups:
            self.group(group)

    def group(self, name: str) -> OptimConfig:
        """Return the settings of one group of parameters.

        Raises:
            UserError: A key or a value of ``groups`` is not allowed.
        """
        allowed = [item.name for item in fields(self) if item.name not in ("name", "groups")]
        given = self.groups.get(name, {})
        if not isinstance(given, dict):
            raise UserError(f"optim.groups.{name}: {given!r} is not a section with keys")
        for key in given:
            check_choice(f"optim.groups.{name}", key, allowed)
        try:  # YAML reads 1e-3 as text
            given = {k: float(v) if isinstance(getattr(self, k), float) else v for k, v in given.items()}
            return replace(self, groups={}, **given)
        except (TypeError, ValueError) as error:
            raise UserError(f"optim.groups.{name}: {error}") from error


@dataclass
class TrainConfig(_Choice):
    """The loop.

    Args:
        epochs: Passes over the training images.
        batch_size: Images a step, over all processes and parts.
        gradient_accumulation_steps: Parts in which a process takes its images of a step, for less memory; the step
            stays the same up to rounding. With a frozen source, equal processes times parts give the same bits.
        augment: Random changes of the training images, drawn again each epoch: none, flip, crop_flip (a random part of
            the small image, resized, and flip), trivial (TrivialAugment); or of the decoded originals, each with flip:
            random_resized_crop, squash_crop (resized to 32 pixels more, then a random part), short_side_crop (the
            shorter side resized, then a random part). Counting passes and scores use the images unchanged.
        feature_views: Augmented views of each training image whose features are computed once and then used in turn, an
            epoch each, where nothing but the mapping trains; when empty, augmented images are encoded anew each epoch.
        gradient: A registered gradient rule: backpropagation; spsa or random_directions, for sources that give no
            gradient; or a plug-in's.
        max_queries: Most queries to the source in training (steps, counting and validation); it ends before
            the step that would exceed it. The tests at the end come on top, unless what the source gives is computed
            once, before the first epoch: then all images count. No limit when empty.
        protocol: val (a validation split selects) or paper (train on all, report the last epoch; counts and scores are
            computed in fp32, whatever source.precision is).
        eval_every: Epochs between two validations.
        patience: Epochs without a better validation after which training stops; it never stops early when empty.
        average: Epochs at the end over which what trains is averaged; the average has scores and a saved prompt of its
            own, in prompt_average. None is made when empty.
        test_every_epoch: With protocol paper, also score the test set each epoch and report the best epoch under a name
            that says so.
        save_every: Epochs between two checkpoints; where epochs touch no image, at least ten seconds are between them.
        save_minutes: Minutes between two checkpoints within an epoch; none when empty.
        keep: Checkpoints kept.
        keep_core: Where to keep what the source computes of the images where no prompt pixel reaches, so that it is
            computed once for all passes over training and validation images, and tests in each epoch: memory, disk,
            off, or auto (memory on a CPU, where it fits and pays). Without augmentation alone; exact up to rounding.
        progress: Show progress bars.
        report_to: Experiment trackers that get each epoch's numbers, such as [tensorboard, wandb]; none by default.
    """

    epochs: int = 10
    batch_size: int = 128
    gradient_accumulation_steps: int = 1
    augment: str = "none"
    feature_views: int | None = None
    gradient: str = "backpropagation"
    max_queries: int | None = None
    protocol: str = "val"
    eval_every: int = 1
    patience: int | None = None
    average: int | None = None
    test_every_epoch: bool = False
    save_every: int = 1
    save_minutes: float | None = None
    keep: int = 2
    keep_core: str = "auto"
    progress: bool = True
    report_to: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for tracker in self.report_to:
            check_choice("train.report_to", tracker, TRACKERS)
        check_choice("train.augment", self.augment, AUGMENTATIONS.names())
        GRADIENTS.check(self.gradient)
        check_choice("train.protocol", self.protocol, ["val", "paper"])
        check_choice("train.keep_core", self.keep_core, ["auto", "off", "memory", "disk"])
        for name in (
            "epochs",
            "batch_size",
            "gradient_accumulation_steps",
            "feature_views",
            "max_queries",
            "eval_every",
            "patience",
            "average",
            "save_every",
            "save_minutes",
            "keep",
        ):
            check_positive(f"train.{name}", getattr(self, name))
        if self.feature_views and self.augment == "none":
            raise UserError(
                f"train.feature_views: {self.feature_views} needs train.augment: crop_flip or another kind; "
                "with none, all views are the same"
            )
        stops = "train.patience" if self.patience else "train.max_queries" if self.max_queries else None
        if self.average and (stops or self.average > self.epochs):
            reason = stops or f"train.epochs: {self.epochs}"
            raise UserError(f"train.average: {self.average} does not go with {reason}")
        if self.test_every_epoch and self.protocol != "paper":
            raise UserError(
                "train.test_every_epoch needs train.protocol: paper; selection never sees the test set"
            )


@dataclass
class RunConfig:
    """A whole run.

    Args:
        source: The model.
        weights: The model's own weights, frozen or trained.
        prompt: The visual prompt.
        mapping: The label mapping.
        data: The target task.
        optim: The optimiser.
        train: The loop.
        seed: One seed for prompt, order, augmentation, carved split and few-shot choice.
        output: Folder of the run; runs/TASK-SOURCE-seedN when empty.
        resume: auto goes on from the newest whole checkpoint in the output folder, or starts if there is none.
        overwrite: Remove the run that the output folder holds.
        plugins: Python files or modules that register methods of your own; see docs/pages/extend.md.
    """

    source: SourceConfig = field(default_factory=SourceConfig)
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    mapping: MappingConfig = field(default_factory=MappingConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    seed: int = 0
    output: str | None = None
    resume: str = "never"
    overwrite: bool = False
    plugins: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_choice("resume", self.resume, ["auto", NEVER])
        if self.output is None:
            data = Path(re.split(r"[/\\\\]", self.data.name.rstrip("/\\"))[-1]).stem or "task"
            name = f"{data}-{self.source.name.partition(':')[2]}-seed{self.seed}"
            self.output = "runs/" + re.sub(r'[/\\\\:*?"<>|]', "-", name)
        self.output = os.path.expanduser(self.output)


def _scheme(name: str) -> str | None:
    scheme = name.partition(":")[0]
    return scheme if scheme in SOURCES else None


def _same(name: str) -> str:
    return name


# In the order of a config. A section of another config class, such as that of evaluation, has the same name here.
SECTIONS = {
    section.name: section
    for section in (
        Section("source", SourceConfig, SOURCES, "name", _scheme),
        Section("weights", WeightsConfig, WEIGHTS, "kind", _same),
        Section("prompt", PromptConfig, PROMPTS, "kind", _same),
        Section("mapping", MappingConfig, MAPPINGS, "kind", _same),
        Section("data", DataConfig, TASKS, "name", lambda name: name if name in TASKS else None),
        Section("optim", OptimConfig, OPTIMIZERS, "name", _same),
        Section("train", TrainConfig, GRADIENTS, "gradient", _same),
    )
}
