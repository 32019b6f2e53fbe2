"""The registered tasks of ``clipvp.data.catalog``: from the hub, or from a folder in CoOp's layout."""

from __future__ import annotations

from dataclasses import replace

from ...config.schema import DataConfig
from ...registry import UserError
from ..catalog import TASK_TABLE, TaskEntry
from .coop import find_task_folder, load_class_folders, load_coop
from .raw import RawTask


def load_registered(config: DataConfig) -> RawTask:
    """Load the task that ``config.name`` names; what the config says of revision, splits and columns comes first."""
    entry = TASK_TABLE[config.name]
    raw = _from_folder(config, entry) if config.folder is not None else _from_hub(config, entry)
    raw.class_names = [entry.renames.get(name, name) for name in raw.class_names]
    if len(raw.class_names) != entry.num_classes:
        raise UserError(
            f"{config.name}: found {len(raw.class_names)} classes, and the task has {entry.num_classes}; "
            "load data of your own by its folder or hub id"
        )
    return raw


def _from_folder(config: DataConfig, entry: TaskEntry) -> RawTask:
    folder = find_task_folder(config.folder, entry.coop)
    if entry.coop_folders:
        return load_class_folders(folder, entry.coop_folders, entry.names())
    return load_coop(folder)


def _from_hub(config: DataConfig, entry: TaskEntry) -> RawTask:
    from .read_table import load_table

    if entry.repo is None:
        raise UserError(
            f"data.name: no hub data set of {config.name} is known; lay its files out as CoOp's DATASETS.md says "
            f"and set data.folder to that folder, .../{entry.coop}"
        )
    splits = {f"{role}_split": name for role, name in entry.splits.items()}
    if "train" not in entry.splits:
        splits["train_split"] = splits.pop("test_split")
    wanted = {"revision": entry.revision, "config": entry.config, **splits}
    wanted |= {"image_column": entry.columns[0], "label_column": entry.columns[1]}
    given = {name: getattr(config, name) for name in wanted if getattr(config, name) is not None}
    raw = load_table(replace(config, name=entry.repo, **{**wanted, **given}), entry.names())
    if "train" not in entry.splits:
        raw.train, raw.test = None, raw.train
        raw.info["splits"] = {"test": raw.info["splits"]["train"]}
    return raw
