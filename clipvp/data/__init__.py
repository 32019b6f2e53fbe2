"""Target tasks: load, split, few-shot, decode once."""

from .cache import EntryInfo, cache_root, clear, list_entries
from .raw import RawTask
from .sets import ImageSet, ImageTensors
from .task import Task, load_task

__all__ = [
    "EntryInfo",
    "ImageSet",
    "ImageTensors",
    "RawTask",
    "Task",
    "cache_root",
    "clear",
    "list_entries",
    "load_task",
]
