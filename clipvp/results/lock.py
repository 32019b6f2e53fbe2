"""One run at a time writes a folder. The lock ends with the process that holds it, also when it is killed."""

from __future__ import annotations

import warnings
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ..files import NO_LOCKS, why_no_lock
from ..registry import UserError

LOCK = ".lock"
_held: dict[Path, tuple[FileLock, int]] = {}  # of this process, and how often each was taken


def take(folder: Path) -> bool:
    """Lock a folder, made where it is missing; a process may do so several times, and gives it back as often.

    Returns:
        False on a file system without locks, where it warns and has no other effect.

    Raises:
        UserError: Another process holds it.
    """
    place = folder.resolve()
    if place in _held:
        lock, times = _held[place]
        _held[place] = lock, times + 1
        return True
    place.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place / LOCK, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"output: another run writes to {str(folder)!r} now; choose another folder, or wait for its end"
        ) from None
    except NO_LOCKS as error:
        warnings.warn(
            f"output: {str(folder)!r} is not guarded against a second run: {why_no_lock(error)}", stacklevel=2
        )
        return False
    _held[place] = lock, 1
    return True


def give_back(folder: Path) -> None:
    """Undo one ``take``; after the last one nothing of the lock is left, nor of a folder that holds nothing else."""
    place = folder.resolve()
    if place not in _held:
        return
    lock, times = _held.pop(place)
    if times > 1:
        _held[place] = lock, times - 1
        return
    with suppress(OSError):  # Windows removes it after the release alone
        (place / LOCK).unlink()
    lock.release()
    with suppress(OSError):
        (place / LOCK).unlink(missing_ok=True)
    with suppress(OSError):  # other files are there
        place.rmdir()
