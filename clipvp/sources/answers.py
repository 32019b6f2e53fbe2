"""Answers of a service, kept on the disk so that no image is paid for twice."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock

from ..registry import UserError


def image_key(image: np.ndarray) -> bytes:
    """Return a hash of an image, uint8 (h, w, 3), by its size and pixels."""
    return hashlib.sha256(f"{image.shape};".encode() + np.ascontiguousarray(image).tobytes()).digest()


class AnswerStore:
    """Rows of numbers by key, in an SQLite file that several processes and threads may use.

    What ``put`` took is on the disk when it returns, all of it or nothing.

    Args:
        path: The file; made where it is missing.
    """

    def __init__(self, path: Path):
        self.path = path
        # A connection belongs to one thread of one process: a fork opens its own.
        self._open = threading.local()

    def get(self, keys: Sequence[bytes]) -> dict[bytes, np.ndarray]:
        """Return the rows, float32, of those keys that are known."""
        found = {}
        with _named(self.path):
            for key in dict.fromkeys(keys):
                row = self._connection().execute("SELECT row FROM answers WHERE key = ?", (key,)).fetchone()
                if row is not None:
                    found[key] = np.frombuffer(row[0], "<f4").astype(np.float32)
        return found

    def put(self, rows: dict[bytes, np.ndarray]) -> None:
        """Add rows; a key that another process has added meanwhile keeps its row, which may be in use."""
        values = [(key, row.astype("<f4").tobytes()) for key, row in rows.items()]
        with _named(self.path), self._connection() as connection:  # one transaction
            connection.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?)", values)

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Wait until no other process or thread has its turn, and take it; it ends with the process, too."""
        with contextlib.ExitStack() as held:
            with _named(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                held.enter_context(FileLock(f"{self.path}.turn.lock"))
            yield

    def __len__(self) -> int:
        with _named(self.path):
            return self._connection().execute("SELECT count(*) FROM answers").fetchone()[0]

    def _connection(self) -> sqlite3.Connection:
        if getattr(self._open, "process", None) != os.getpid():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Two processes that make the file at once would both switch its mode, for which none of them waits.
            with FileLock(f"{self.path}.lock"):
                connection = sqlite3.connect(self.path, timeout=60)
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")
                with connection:
                    connection.execute(
                        "CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, row BLOB) WITHOUT ROWID"
                    )
            self._open.connection, self._open.process = connection, os.getpid()
        return self._open.connection

    def __reduce__(self) -> tuple:
        return AnswerStore, (self.path,)


class _named:
    """Turn an error of the disk into a line that names the file."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, trace) -> None:
        if isinstance(error, (sqlite3.Error, OSError)):
            raise UserError(
                f"the kept answers in {str(self.path)!r} cannot be read or written: {error}"
            ) from error
