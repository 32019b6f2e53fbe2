"""A target task with its splits chosen: what is trained on, what selects, what is tested once."""

from __future__ import annotations

import hashlib
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..config.schema import DataConfig
from ..images import Reading, Resize, Shrink
from ..labels.names import distinct_names, rename_classes
from ..registry import TASKS, UserError, check_choice, nearest
from .catalog import TASK_TABLE, paper_note, reference_names
from .loaders.coop import is_coop, load_coop
from .loaders.pairs import from_pairs
from .loaders.raw import RawTask, name_few
from .originals import OriginalImages
from .sets import ImageSet, ImageTensors
from .splits import MAX_TEST, VAL, carve_test, choose_shots, choose_stratified, choose_train

SPLITS = ("train", "val", "test", "all")
CARVED = "carved from train"
_SURROGATES = re.compile("[\ud800-\udfff]")  # bytes of a file's name that are not UTF-8


@dataclass(eq=False)
class Task:
    """A target task.

    Args:
        name: What it is called.
        class_names: The T classes in the order of their labels.
        train: Images that train, if any; a task without is a test set.
        val: Images that select, if any.
        test: Images that are scored once, at the end; None for a task ``without_test``.
        split_hash: The same on every machine where the same images, by place, train, validate and test.
        info: Where it came from and how it was split, ready for JSON.
        cache_dir: Folder of decoded images; the user's cache folder when empty.
        cache_side: Most pixels of the shorter side of decoded originals.
        on_error: What an unreadable image does: raise or skip.
        reading: What the images' files do not say.
        empty: Where its images hold nothing, by a name in ``clipvp.prompts.base.EMPTY``.
        notes: What was taken for what when it was read, and what is not used: sentences for people.
        whole: Every image, where the data has no splits of its own.
        identity: The same wherever the same images are, however they are split; None where that cannot be known.
    """

    name: str
    class_names: list[str]
    train: ImageSet | None
    val: ImageSet | None
    test: ImageSet | None
    split_hash: str
    info: dict[str, Any] = field(default_factory=dict)
    cache_dir: str | None = None
    cache_side: int = 256
    on_error: str = "raise"
    reading: Reading = Reading()
    empty: str | None = None
    notes: list[str] = field(default_factory=list)
    whole: ImageSet | None = None
    identity: str | None = None

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def test_hash(self) -> str:
        """The same wherever the same images test, by place, whatever trains and validates."""
        return _hash(list(self.class_names), {"test": self.test})

    def images(self, split: str) -> ImageSet:
        """Return the images of train, val or test; or all of them, where the data has no splits of its own.

        Raises:
            UserError: There is no such split.
        """
        check_choice("split", split, SPLITS)
        images = self.whole if split == "all" else getattr(self, split)
        if images is None and split == "all":
            named = [name for name in SPLITS[:3] if getattr(self, name) is not None]
            raise UserError(f"{self.name} has splits of its own; score one of them: {', '.join(named)}")
        if images is None:
            hint = "; it is a test set, to score prompts on" if self.train is None else ""
            raise UserError(f"{self.name} has no {split} split{hint}")
        return images

    def without_test(self) -> Task:
        """Return the same task without its test images, so that nothing can read them; the split hash stays."""
        return replace(self, test=None, whole=None)

    def tensors(self, split: str, resize: Resize, *, progress: bool = True) -> ImageTensors:
        """Decode the images of train, val, test or all; see ``images`` and ``ImageSet.tensors``.

        What ``reading`` says comes before what ``resize`` says.
        """
        images = self.images(split)
        if split == "train":
            _check_trainable(images, self.class_names)
        resize = replace(resize, reading=resize.reading.updated(self.reading))
        decoded = images.tensors(resize, cache_dir=self.cache_dir, on_error=self.on_error, progress=progress)
        if not len(decoded):
            raise UserError(f"{images.name}: none of its {len(images)} images can be read")
        if split == "train" and decoded.skipped:
            where = f"{images.name}, unreadable images left out"
            _check_classes(decoded.labels.numpy(), self.class_names, where)
        return decoded

    def originals(self, resize: Resize, *, progress: bool = True) -> OriginalImages:
        """Decode the originals of the training images; those that cannot be read are left out as in ``tensors``.

        Args:
            resize: Of the small images: its size is that of what will be cut from the originals.
            progress: Show a bar while images are decoded.
        """
        reading = resize.reading.updated(self.reading)
        shrink = Shrink(self.cache_side, resize.interpolation, reading)
        options = {"cache_dir": self.cache_dir, "on_error": self.on_error, "progress": progress}
        return self.images("train").originals(shrink, resize.size, **options)

    def says(self, split: str) -> str:
        """Return how many images a split has and where they come from, as a person reads it."""
        images = self.images(split)
        count = f"{len(images)} image{'' if len(images) == 1 else 's'}"
        limit = self.info.get("max_test") if split in ("test", "all") else None
        most = f", at most {limit} by data.max_test" if limit is not None else ""
        if split == "all":
            return f"all {count} of {images.name}" if limit is None else f"{count} of {images.name}{most}"
        source = self.info.get(f"{split}_from", images.name)
        if source == CARVED and split == "val" and self.info.get("shots") is not None:
            return f"{count}, at most {min(self.info['shots'], 4)} a class, {CARVED}"
        if source == CARVED:
            return f"{count}, {round(100 * self.info[f'{split}_share'], 1):g} % {CARVED}{most}"
        return f"{count} of {images.name}{most}"

    def __str__(self) -> str:
        """Return what was read: classes, images of each split and where they come from, and what is not used."""
        names = [str(name) for name in self.class_names]
        few = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
        lines = [f"{self.name}: {len(names)} classes ({few}), from {self.info.get('from', 'Python')}"]
        if self.train is None and self.whole is not None:
            lines.append(f"  {self.says('all')}")
        else:
            splits = [split for split in SPLITS[:3] if getattr(self, split) is not None]
            lines += [f"  {split:<5} {self.says(split)}" for split in splits]
        notes = list(self.notes)
        if all(name.isdecimal() for name in names):
            notes.append("the classes are numbers; data.class_names gives them names")
        return "\n".join([*lines, *(f"  {note}" for note in notes)])

    def describe(self) -> dict[str, Any]:
        """Return what a run's results say of the task, ready for JSON; few-shot choices image by image."""
        splits = {split: getattr(self, split) for split in SPLITS[:3] if getattr(self, split) is not None}
        described = {
            "name": self.name,
            "class_names": self.class_names,
            "num_classes": self.num_classes,
            "sizes": {split: len(images) for split, images in splits.items()},
            "fingerprints": {split: images.fingerprint for split, images in splits.items()},
            "split_hash": self.split_hash,
            "identity": self.identity,
            "notes": self.notes,
            **self.info,
        }
        if self.info.get("shots") is not None:
            described["indices"] = {
                split: images.indices.tolist() for split, images in splits.items() if split != "test"
            }
        return described

    @classmethod
    def from_dataset(
        cls,
        train: Any,
        test: Any = None,
        val: Any = None,
        class_names: Sequence[str] | None = None,
        *,
        name: str = "custom",
        config: DataConfig | None = None,
        seed: int = 0,
        protocol: str = "val",
    ) -> Task:
        """Make a task of data sets that are in Python already.

        Args:
            train: A ``datasets.Dataset``, or any data set with a length and (image, label) items; or a
                ``datasets.DatasetDict``, whose splits are taken by their names.
            test: The same for testing; carved from train when empty.
            val: The same for validation; carved from train when empty, see ``load_task``.
            class_names: The classes in the order of their labels; the data set's own when empty.
            name: What to call the task.
            config: Limits, shares and columns, as for ``load_task``; its name is not used.
            seed: Chooses the images.
            protocol: val or paper, see ``load_task``.
        """
        config = config or DataConfig()
        splits = {"train": train, "val": val, "test": test}
        splits = {role: data for role, data in splits.items() if data is not None}
        for role, data in splits.items():
            if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
                raise UserError(
                    f"{name}/{role}: {type(data).__name__} gives its images only one after the other; an epoch takes "
                    "them by number and in a new order: give list(data), or datasets.Dataset.from_generator"
                )
        names = None if class_names is None else list(class_names)
        library = sys.modules.get("datasets")  # who has made one has imported it
        if library and isinstance(train, library.DatasetDict) and len(splits) == 1:
            raw = _from_tables(dict(train), config, name, names)
        elif library and all(isinstance(data, library.Dataset) for data in splits.values()):
            chosen = {
                f"{role}_split": None if len(splits) == 1 else splits.get(role) and role
                for role in SPLITS[:3]
            }
            raw = _from_tables(splits, replace(config, **chosen), name, names)
        else:
            raw = from_pairs(splits, name=name, class_names=names)
        return build_task(name, raw, config, seed=seed, protocol=protocol)


def _from_tables(
    splits: dict[str, Any], config: DataConfig, name: str, class_names: list[str] | None
) -> RawTask:
    from .loaders.table import Tables, from_datasets

    return from_datasets(Tables(splits), config, name=name, class_names=class_names)


def load_task(
    data: str | DataConfig, *, seed: int = 0, protocol: str = "val", test_set: bool = False
) -> Task:
    """Load a target task and choose its splits. ``print(task)`` says what was read.

    Args:
        data: A registered task, an image folder, a folder with a split file of CoOp, a parquet or CSV file, a
            folder of parquet files, or a hub data set ``org/name``; or a whole ``DataConfig``. Registered names come
            first: write ./digits for a folder of that name.
        seed: Chooses the carved validation split and the limited training images, never the test images.
        protocol: val (a task without validation images gets ``data.val`` of its training images) or paper
            (all training images train, nothing validates).
        test_set: It is read to score on: nothing is carved, and it may lack classes. Where the data has no splits of
            its own, its test split is every image.

    Raises:
        UserError: The task is not found, or does not fit: the message says what would.

    >>> from clipvp import load_task
    >>> task = load_task("digits")
    >>> task.num_classes, task.class_names[:3]
    (10, ['zero', 'one', 'two'])
    """
    config = DataConfig(name=data) if isinstance(data, str) else data
    raw = _load_raw(config)
    return build_task(data_name(config), raw, config, seed=seed, protocol=protocol, test_set=test_set)


def data_name(config: DataConfig) -> str:
    """Return what to call the task that a config names."""
    path = Path(config.name).expanduser()
    return path.stem if path.is_file() else path.resolve().name


def _load_raw(config: DataConfig) -> RawTask:
    if config.folder is not None and not (config.name in TASK_TABLE and TASK_TABLE[config.name].coop):
        raise UserError(
            f"data.folder: CoOp's layout has no {config.name!r}; a folder of your own is named by data.name"
        )
    if config.name in TASKS:
        return TASKS.get(config.name)(config)
    path = Path(config.name).expanduser()
    if path.is_dir() and is_coop(path):
        return load_coop(path)
    from .loaders import read_table

    if path.is_dir() and not read_table.is_table_folder(path):
        from .loaders.folder import load_folder

        return load_folder(config)
    if path.is_file() and path.suffix.lower() not in read_table.FILE_ENDINGS:
        raise UserError(
            f"data.name: {config.name} is no task; give a table ({', '.join(read_table.FILE_ENDINGS)}) or a folder"
        )
    if path.exists() or re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", config.name):
        return read_table.load_table(config)
    if "/" in config.name or path.is_absolute():
        raise UserError(f"data.name: there is no folder or file {config.name}")
    raise UserError(
        f"data.name: unknown task {config.name!r}; {nearest(config.name, TASKS.names())}; "
        "or a folder of images, a .parquet or .csv file, or a hub data set as org/name"
    )


def build_task(
    name: str,
    raw: RawTask,
    config: DataConfig,
    *,
    seed: int = 0,
    protocol: str = "val",
    test_set: bool = False,
) -> Task:
    """Check what a loader found and choose the images of each split."""
    check_choice("train.protocol", protocol, ["val", "paper"])
    if config.class_names is not None:
        raw = _renamed(raw, config.class_names)
    if config.names == "reference":
        named = reference_names(name, raw.class_names, given=config.class_names is not None)
        raw = replace(raw, class_names=named)
    raw = _distinct(raw)
    _check(raw)
    if (protocol == "paper" or config.name in TASK_TABLE) and raw.train is not None and raw.test is not None:
        note = paper_note(name, len(raw.train), len(raw.test))
        raw = replace(raw, notes=[*raw.notes, *([note] if note else [])])
    raw = raw.of_classes(config.classes)
    _check(raw)
    if raw.train is not None and not test_set:
        try:
            _check_trainable(raw.train, raw.class_names)
        except UserError as error:
            unused = [note for note in raw.notes if note.startswith("not used")]
            raise UserError("; ".join([str(error), *unused])) from None
    num_classes, train, test = len(raw.class_names), raw.train, raw.test
    given = raw.info.get("splits", {})  # says so when a validation split is the test set
    test_from, whole = given.get("test", "test"), None
    if test is None:
        whole = _limited(train, num_classes, config.max_test)
        if test_set:
            train, test, test_from = None, whole, "all"
        else:
            train, test, test_from = *_carve(train, num_classes, config.test), CARVED
    test = _limited(test, num_classes, config.max_test)

    val, val_from = None, "none"
    if train is not None:
        train, val, val_from = _choose_train_val(train, raw.val, num_classes, config, seed, protocol)
        val_from = val_from or given.get("val", "val")

    limits = ("classes", "shots", "max_train", "max_test")
    chosen = {**{name: getattr(config, name) for name in limits}, "seed": seed, "protocol": protocol}
    shares = {f"{role}_share": share for role, share in (("val", config.val), ("test", config.test))}
    info = {**raw.info, **chosen, **shares, "val_from": val_from, "test_from": test_from}
    splits = {"train": train, "val": val, "test": test}
    return Task(
        name,
        list(raw.class_names),
        **splits,
        split_hash=_hash(list(raw.class_names), splits),
        info=info,
        cache_dir=config.cache_dir,
        cache_side=config.cache_side,
        on_error=config.on_error,
        reading=Reading(config.bits, config.background),
        empty=raw.empty,
        notes=raw.notes,
        whole=whole,
        identity=_identity(raw),
    )


def _carve(train: ImageSet, num_classes: int, share: float) -> tuple[ImageSet, ImageSet]:
    """Return the images that are left to train, and those that test."""
    train_rows, test_rows = carve_test(train.labels, num_classes, share)
    if not len(test_rows):
        raise UserError(
            f"{train.name}: {len(train)} images in {num_classes} classes are too few to carve a test"
        )
    return train.subset(train_rows), train.subset(test_rows)


def _limited(images: ImageSet, num_classes: int, most: int | None) -> ImageSet:
    return (
        images
        if most is None
        else images.subset(choose_stratified(images.labels, num_classes, most, MAX_TEST))
    )


def _renamed(raw: RawTask, given: Any) -> RawTask:
    """Return a task with the class names, in the order, that ``data.class_names`` gives."""
    names, order = rename_classes(raw.class_names, given)
    if order is None:
        return replace(raw, class_names=names)
    place = np.argsort(order)
    sets = {role: getattr(raw, role) for role in SPLITS[:3]}
    sets = {role: images and replace(images, labels=place[images.labels]) for role, images in sets.items()}
    return replace(raw, class_names=names, **sets)


def _distinct(raw: RawTask) -> RawTask:
    """Return a task whose class names are text and differ: those that are there twice get their places added."""
    raw = replace(raw, class_names=[_SURROGATES.sub("\ufffd", str(name)) for name in raw.class_names])
    names = distinct_names(raw.class_names)
    changed = [name for name, before in zip(names, raw.class_names, strict=True) if name != before]
    note = f"classes with the same name, told apart by their numbers: {name_few(changed)}"
    return replace(raw, class_names=names, notes=[*raw.notes, note]) if changed else raw


def _choose_train_val(
    train: ImageSet, val: ImageSet | None, num_classes: int, config: DataConfig, seed: int, protocol: str
) -> tuple[ImageSet, ImageSet | None, str | None]:
    """Return the images that train, those that validate, and where these come from, None for the task itself."""
    if config.max_train is not None and config.max_train < num_classes:
        raise UserError(f"data.max_train: {config.max_train} images are too few for {num_classes} classes")
    share = config.val if protocol == "val" and val is None else 0.0
    limits = {"shots": config.shots, "max_train": config.max_train}
    train_rows, val_rows = choose_train(train.labels, num_classes, seed=seed, val=share, **limits)
    chosen, val_from = train.subset(train_rows), None
    if protocol == "paper" or (val is None and not len(val_rows)):
        val, val_from = None, "none"
    elif val is None:
        val, val_from = train.subset(val_rows), CARVED
    elif config.shots is not None:
        val = val.subset(choose_shots(val.labels, num_classes, min(config.shots, 4), VAL, seed))
    return chosen, val, val_from


def _hash(class_names: list[str], splits: dict[str, ImageSet | None]) -> str:
    # Fingerprints hold file times, which differ between copies of the same data, so they stay out.
    digest = hashlib.sha256(repr(class_names).encode())
    for split, images in splits.items():
        if images is not None:
            digest.update(f"{split} {len(images.items)} {len(images)}".encode())
            digest.update(images.indices.astype("<i8").tobytes() + images.labels.astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def _identity(raw: RawTask) -> str | None:
    """Return a hash of all images and their classes, whatever is chosen of them; None where images have no identity."""
    digest = hashlib.sha256(repr(raw.class_names).encode(errors="surrogateescape"))
    for images in (raw.train, raw.val, raw.test):
        if images is not None and images.identity is None:
            return None
        if images is not None:
            digest.update(f"{images.identity} {len(images)}".encode())
            digest.update(images.labels.astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def _check(raw: RawTask) -> None:
    names = raw.class_names
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"{raw.name}: class names appear twice: {name_few(repeated)}")
    if not names:
        raise UserError(f"{raw.name}: there are no classes")
    for images in (raw.train, raw.val, raw.test):
        if images is None:
            continue
        if not len(images):
            raise UserError(f"{images.name}: the split is empty")
        if wrong := [
            label for label in (images.labels.min(), images.labels.max()) if not 0 <= label < len(names)
        ]:
            raise UserError(f"{images.name}: label {wrong[0]} is not within 0..{len(names) - 1}")


def _check_trainable(images: ImageSet, class_names: list[str]) -> None:
    """Raise ``UserError`` where there is nothing to tell apart, or a class has no images."""
    if len(class_names) < 2:
        raise UserError(f"{images.name}: {len(class_names)} class {class_names}; a task needs two or more")
    _check_classes(images.labels, class_names, images.name)


def _check_classes(labels: np.ndarray, class_names: list[str], where: str) -> None:
    counts = np.bincount(labels, minlength=len(class_names))
    if absent := [class_names[label] for label in np.flatnonzero(counts == 0)]:
        raise UserError(f"{where}: classes without training images: {name_few(absent)}")
