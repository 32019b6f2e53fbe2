"""What a run is: nested dataclasses that YAML files, the command line and Python fill alike.

No torch here, so that ``--help`` and a refused value cost no more than the interpreter's start.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..registry import AUGMENTATIONS, MAPPINGS, PROMPTS, TASKS, UserError, check_choice

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


_LARGEST = 3.4e38  # what float32 holds


def _positive(what: str, value: float | None, zero: bool = False) -> None:
    if value is not None and not (0 <= value <= _LARGEST and (zero or value != 0)):  # not-a-number fails too
        limits = f"{'>= 0' if zero else '> 0'}{f', at most {_LARGEST:g}' if value > 0 else ''}"
        raise UserError(f"{what}: {value} is not allowed; give a number {limits}")


@dataclass
class SourceConfig:
    """The frozen model.

    Args:
        name: ``scheme:model``, see ``clipvp.load_source``.
        canvas: Input size in pixels, a number for a square or [height, width]; the model's own when empty.
        precision: Arithmetic of the frozen part (fp32, bf16, fp16); the prompt and the loss stay in fp32.
        compile: Compile the network (torch.compile); of no effect where the border is shared.
        revision: Branch, tag or commit of a hub model.
        local_files_only: Never ask the network, take what the hub cache holds.
    """

    name: str = "offline:lite0"
    canvas: int | list[int] | None = None
    precision: str = "fp32"
    compile: bool = False
    revision: str | None = None
    local_files_only: bool = False

    def __post_init__(self):
        check_choice("source.precision", self.precision, ["fp32", "bf16", "fp16"])
        sides = self.canvas if isinstance(self.canvas, list) else [self.canvas]
        if isinstance(self.canvas, list) and len(self.canvas) != 2:
            raise UserError(f"source.canvas: {self.canvas} is not a size; give one number or [height, width]")
        for side in sides:
            _positive("source.canvas", side)


@dataclass
class PromptConfig:
    """The visual prompt.

    Args:
        kind: padding (a frame around a small image), border (a frame added on the image), patch, full, none.
        image_size: Side in pixels of the image inside the canvas (padding); half the canvas when empty.
        width: Width in pixels of the frame (border).
        patch_size: Side in pixels of the square (patch).
        patch_position: [top, left] in pixels of the square (patch).
        space: pixel, or normalized: delta is added after the source's normalisation (additive prompts).
        clip: Clamp prompted pixels to [0, 1] (additive prompts).
        share_border: Compute the network's work on the frame once a batch, not once an image (padding): exact, faster.
    """

    kind: str = "padding"
    image_size: int | None = None
    width: int = 30
    patch_size: int = 32
    patch_position: list[int] = field(default_factory=lambda: [0, 0])
    space: str = "pixel"
    clip: bool = False
    share_border: bool = True

    def __post_init__(self):
        PROMPTS.check(self.kind)
        check_choice("prompt.space", self.space, ["pixel", "normalized"])
        for name in ("image_size", "width", "patch_size"):
            _positive(f"prompt.{name}", getattr(self, name))
        if len(self.patch_position) != 2 or min(self.patch_position) < 0:
            raise UserError(f"prompt.patch_position: {self.patch_position} is not [top, left] in pixels")


@dataclass
class MappingConfig:
    """Source logits to target logits.

    Args:
        kind: random (RLM), frequency (FLM and ILM), identity (labels and classes with the same names).
        refresh: Epochs between two refreshes of a frequency mapping: 1 is ILM, never is FLM.
        assignment: greedy (the paper's) or optimal (largest total count).
        statistics: exact (a counting pass over the training set) or running (counts of the training steps).
        within: class restricts a class to the labels of its own name: template selection (CLIP, frequency).
        templates: For CLIP, a set's name, one template, a list or a text file, one a line; when empty the paper's 81,
            and for identity "This is a photo of a {}.".
        class_names: For CLIP, the task's class name to the name to put into templates.
    """

    kind: str = "frequency"
    refresh: int | str = 1
    assignment: str = "greedy"
    statistics: str = "exact"
    within: str | None = None
    templates: str | list[str] | None = None
    class_names: dict[str, str] | None = None

    def __post_init__(self):
        MAPPINGS.check(self.kind)
        check_choice("mapping.assignment", self.assignment, ["greedy", "optimal"])
        check_choice("mapping.statistics", self.statistics, ["exact", "running"])
        if self.within is not None:
            check_choice("mapping.within", self.within, ["class"])
            if self.kind != "frequency":
                raise UserError(
                    f"mapping.within: {self.within} goes with mapping.kind: frequency, not {self.kind}"
                )
        if isinstance(self.refresh, str):
            if self.refresh != NEVER:
                raise UserError(
                    f"mapping.refresh: {self.refresh!r} is neither a number of epochs nor {NEVER!r}"
                )
        else:
            _positive("mapping.refresh", self.refresh)


@dataclass
class DataConfig:
    """The target task.

    Args:
        name: A registered task, a folder of images, a folder with a split file of CoOp, a parquet file or folder of
            them, or a hub data set.
        folder: Where the files of a registered task lie in CoOp's layout, to be read in place of the hub's.
        classes: all, base (the first half of the classes, in the order of their labels) or new (the rest).
        shots: Training images a class (few-shot); validation then has min(shots, 4) a class.
        max_train: At most so many training images, the classes' shares kept.
        max_test: At most so many test images, the classes' shares kept.
        val: Share of the training images carved for validation where the task has none; 0 carves none.
        test: Share of the training images carved for testing where the task has no test split, for every seed
            the same.
        on_error: What an unreadable image does: raise (all are listed) or skip (left out and counted).
        image_column: Column of images in a table; found by its type when empty.
        label_column: Column of labels in a table; found by its type when empty.
        config: Configuration of a hub data set.
        revision: Branch, tag or commit of a hub data set.
        train_split: Split to train on.
        val_split: Split to validate on; carved when empty and the task has none.
        test_split: Split to test on.
        cache_dir: Folder of decoded images; the user's cache folder when empty.
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
    image_column: str | None = None
    label_column: str | None = None
    config: str | None = None
    revision: str | None = None
    train_split: str | None = None
    val_split: str | None = None
    test_split: str | None = None
    cache_dir: str | None = None

    def __post_init__(self):
        check_choice("data.on_error", self.on_error, ["raise", "skip"])
        check_choice("data.classes", self.classes, ["all", "base", "new"])
        for name in ("shots", "max_train", "max_test"):
            _positive(f"data.{name}", getattr(self, name))
        if not 0 <= self.val < 1:
            raise UserError(f"data.val: {self.val} is not a share; give a number from 0 up to, not with, 1")
        if not 0 < self.test < 1:
            raise UserError(f"data.test: {self.test} is not a share; give a number between 0 and 1")
        if self.shots is not None and self.max_train is not None:
            raise UserError("data.shots and data.max_train both limit the training images; give one of them")
        if not self.name:
            raise UserError(
                f"data.name is empty; give a folder, a file, a hub data set or one of {TASKS.names()}"
            )


@dataclass
class OptimConfig:
    """The optimiser of the prompt and its schedule.

    Args:
        name: adam, adamw or sgd.
        lr: Learning rate at its highest.
        momentum: Momentum (sgd).
        weight_decay: Weight decay.
        schedule: multistep (a factor at each milestone), cosine (to zero, per step), cosine_epoch or constant.
        milestones: Shares of the epochs after which the rate falls (multistep).
        gamma: Factor at each milestone (multistep).
        warmup: Share of all steps in which the rate rises linearly to lr.
    """

    name: str = "adam"
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "multistep"
    milestones: list[float] = field(default_factory=lambda: [0.5, 0.72])
    gamma: float = 0.1
    warmup: float = 0.0

    def __post_init__(self):
        check_choice("optim.name", self.name, ["adam", "adamw", "sgd"])
        check_choice("optim.schedule", self.schedule, ["multistep", "cosine", "cosine_epoch", "constant"])
        _positive("optim.lr", self.lr)
        for name in ("momentum", "weight_decay", "gamma", "warmup"):
            _positive(f"optim.{name}", getattr(self, name), zero=True)
        if not all(0 <= share <= 1 for share in self.milestones):
            raise UserError(f"optim.milestones: {self.milestones} are not shares of the epochs; give 0 to 1")
        if self.warmup > 1:
            raise UserError(f"optim.warmup: {self.warmup} is not a share of the steps; give 0 to 1")


@dataclass
class TrainConfig:
    """The loop.

    Args:
        epochs: Passes over the training images.
        batch_size: Images a step, over all processes and parts.
        gradient_accumulation_steps: Parts in which a process takes its images of a step, for less memory; the step
            stays the same up to rounding. With a frozen source, equal processes times parts give the same bits.
        augment: What training does to its images, anew each epoch: none, flip, crop_flip (a random part, resized, and
            flip) or trivial (TrivialAugment). Counting passes and scores see the images as they are.
        protocol: val (a validation split selects) or paper (train on all, report the last epoch).
        eval_every: Epochs between two validations.
        test_every_epoch: With protocol paper, also score the test set each epoch and report its best, named so.
        save_every: Epochs between two checkpoints.
        save_minutes: Minutes after which a checkpoint is made within an epoch too.
        keep: Checkpoints kept.
        progress: Show progress bars.
        report_to: Experiment trackers that are told of each epoch, such as [tensorboard, wandb]; none by default.
    """

    epochs: int = 10
    batch_size: int = 128
    gradient_accumulation_steps: int = 1
    augment: str = "none"
    protocol: str = "val"
    eval_every: int = 1
    test_every_epoch: bool = False
    save_every: int = 1
    save_minutes: float | None = None
    keep: int = 2
    progress: bool = True
    report_to: list[str] = field(default_factory=list)

    def __post_init__(self):
        for tracker in self.report_to:
            check_choice("train.report_to", tracker, TRACKERS)
        check_choice("train.augment", self.augment, AUGMENTATIONS.names())
        check_choice("train.protocol", self.protocol, ["val", "paper"])
        for name in (
            "epochs",
            "batch_size",
            "gradient_accumulation_steps",
            "eval_every",
            "save_every",
            "save_minutes",
            "keep",
        ):
            _positive(f"train.{name}", getattr(self, name))
        if self.test_every_epoch and self.protocol != "paper":
            raise UserError(
                "train.test_every_epoch needs train.protocol: paper; selection never sees the test set"
            )


@dataclass
class RunConfig:
    """A whole run.

    Args:
        source: The frozen model.
        prompt: The visual prompt.
        mapping: The label mapping.
        data: The target task.
        optim: The optimiser.
        train: The loop.
        seed: One seed for prompt, order, augmentation, carved split and few-shot choice.
        output: Folder of the run; runs/TASK-SOURCE-seedN when empty.
        resume: auto goes on from the newest whole checkpoint in the output folder, and starts where there is none.
        overwrite: Remove the run that the output folder holds.
    """

    source: SourceConfig = field(default_factory=SourceConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    mapping: MappingConfig = field(default_factory=MappingConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    seed: int = 0
    output: str | None = None
    resume: str = "never"
    overwrite: bool = False

    def __post_init__(self):
        check_choice("resume", self.resume, ["auto", NEVER])
        if self.output is None:
            task = Path(self.data.name).stem or "task"
            self.output = (
                f"runs/{task}-{self.source.name.partition(':')[2].replace('/', '-')}-seed{self.seed}"
            )
