"""What people hand to ``predict``, as a list of single images."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from typing import Any

from ..registry import UserError
from .loaders.files import image_paths


def single_images(images: Any) -> list[Any]:
    """Return one or many images as a list of single ones, not yet read.

    Args:
        images: What ``to_rgb`` takes, or a folder (all images below it, in a fixed order), or a pattern such as
            ``photos/*.jpg``; or any number of these, in a list, an array, a pandas Series or another iterable.

    Raises:
        UserError: A folder holds no images, or a pattern fits no file.
    """
    many = list(images) if _is_many(images) else [images]
    return [single for image in many for single in _expanded(image)]


def _is_many(images: Any) -> bool:
    if isinstance(images, (str, bytes, bytearray, memoryview)) or not isinstance(images, Iterable):
        return False
    if hasattr(images, "getexif") or hasattr(images, "read"):  # a PIL image, an open file
        return False
    return getattr(images, "ndim", 1) not in (0, 2, 3)


def _expanded(image: Any) -> list[Any]:
    if not isinstance(image, (str, os.PathLike)):
        return [image]
    path = os.path.expanduser(os.fspath(image))
    if os.path.isdir(path):
        if found := image_paths(path):
            return found
        raise UserError(f"{path}: the folder holds no images")
    if isinstance(path, str) and glob.has_magic(path) and not os.path.lexists(path):
        if found := sorted(glob.glob(path, recursive=True)):
            return [single for match in found for single in _expanded(match)]
        raise UserError(f"{path}: no file fits this pattern")
    return [image]
