"""The image files below a folder, and what else is there."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, features

from ...registry import UserError

# Endings of the formats that Pillow reads.
_ENDINGS = {
    *(".jpg", ".jpeg", ".jpe", ".jif", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib"),
    *(
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".jp2",
        ".j2k",
        ".jpx",
        ".tga",
        ".pcx",
        ".ico",
        ".mpo",
    ),
}
_HEIC, _AVIF = {".heic", ".heif", ".hif"}, {".avif", ".avifs"}
_NEEDS = 'need pillow-heif: pip install "clipvp[heif]"'
_SYSTEM = {"__macosx", "@eadir", "thumbs.db", "desktop.ini", "$recycle.bin", "system volume information"}
_SYSTEM |= {"lost+found", "icon\r", "ehthumbs.db", "#recycle"}


@dataclass
class Found:
    """What is below a folder.

    Args:
        images: Paths of the image files, sorted.
        unused: How many files of each kind are not images.
        examples: One file of each kind.
    """

    images: list[str] = field(default_factory=list)
    unused: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def leave(self, kind: str, path: str) -> None:
        """Count a file that is not used."""
        self.unused[kind] += 1
        self.examples.setdefault(kind, path)

    def add(self, other: Found) -> None:
        """Take over what another folder holds, its images excepted."""
        self.unused += other.unused
        self.examples = {**other.examples, **self.examples}

    def notes(self, root: Path) -> list[str]:
        """Return one sentence for each kind of file that is not used."""
        notes = []
        for kind, count in sorted(self.unused.items()):
            example = printable(os.path.relpath(self.examples[kind], root))
            what, _, why = kind.partition(": ")
            files = "file" if count == 1 else "files"
            such = f"{example!r}" if count == 1 else f"such as {example!r}"
            notes.append(f"{count} {what.format(files=files)} ({such})" + (f"; {why}" if why else ""))
        return notes


def find_images(folder: str | os.PathLike, deep: bool = True) -> Found:
    """Return the images in a folder, and in those below it if ``deep``, in a fixed order; links are followed.

    A file without an ending is an image if its content is one. Hidden files and those that operating systems leave
    behind are not. A link to a folder above itself is not followed.
    """
    found = Found()
    _walk(os.fspath(folder), found, (), deep)
    found.images.sort()
    return found


def image_paths(folder: str | os.PathLike) -> list[str]:
    """Return the images in a folder and the folders below it, in a fixed order."""
    return find_images(folder).images


def _walk(folder: str, found: Found, above: tuple[tuple[int, int], ...], deep: bool) -> None:
    state = os.stat(folder)
    above = (*above, (state.st_dev, state.st_ino))
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_system(entry.name):
                if not entry.is_dir():
                    found.leave("hidden or system {files}", entry.path)
                continue
            ending = os.path.splitext(entry.name)[1].lower()
            if ending in _ENDINGS and not entry.is_dir():  # also a broken link, which reading will report
                found.images.append(entry.path)
            elif entry.is_dir():
                below = entry.stat()
                if entry.is_symlink() and (below.st_dev, below.st_ino) in above:
                    found.leave("{files} that link to a folder above", entry.path)
                elif deep:
                    _walk(entry.path, found, above, deep)
            elif not entry.is_file():
                found.leave("{files} that cannot be read", entry.path)
            elif why := why_unused(entry.path, ending):
                found.leave(why, entry.path)
            else:
                found.images.append(entry.path)


def why_unused(path: str, ending: str) -> str | None:
    """Return the kind of a file that is not used, or None for an image."""
    if ending in _ENDINGS:
        return None
    if ending in _HEIC:
        return None if find_spec("pillow_heif") else f"{ending} {{files}}: these {_NEEDS}"
    if ending in _AVIF:
        return (
            None
            if features.check("avif") or find_spec("pillow_heif")
            else f"{ending} {{files}}: these {_NEEDS}"
        )
    if ending:
        return f"{printable(ending)} {{files}}"
    return None if _holds_image(path) else "{files} without an ending that are no images"


def _holds_image(path: str) -> bool:
    """Return whether a file's content begins as that of an image."""
    try:
        with Image.open(path):
            return True
    except Exception:  # Pillow raises a dozen unrelated types
        return False


def is_system(name: str) -> bool:
    """Return whether a file or folder is hidden or was left behind by an operating system."""
    return name.startswith(".") or name.lower() in _SYSTEM


def printable(name: str) -> str:
    """Return a file's name as text that can be written and compared: NFC, with U+FFFD for bytes that are not UTF-8."""
    return unicodedata.normalize("NFC", os.fsencode(name).decode("utf-8", "replace"))


def subfolders(folder: Path) -> dict[str, Path]:
    """Return the folders in a folder by their printable names, sorted; there are none where it does not exist.

    Raises:
        UserError: Two names are the same text.
    """
    if not folder.is_dir():
        return {}
    found: dict[str, Path] = {}
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_dir() and not is_system(entry.name)]
    for own in names:
        name = printable(own)
        if name in found:
            raise UserError(
                f"{folder}: two folders have the name {name!r} as far as it can be read; rename one"
            )
        found[name] = folder / own
    return dict(sorted(found.items()))


def holds_images(folder: Path) -> bool:
    """Return whether a folder itself, not one below it, holds an image."""
    with os.scandir(folder) as entries:
        for entry in entries:
            ending = os.path.splitext(entry.name)[1].lower()
            if not is_system(entry.name) and entry.is_file() and not why_unused(entry.path, ending):
                return True
    return False


def any_images(folder: Path) -> bool:
    """Return whether there is an image in a folder or below it."""
    return holds_images(folder) or bool(find_images(folder).images)
