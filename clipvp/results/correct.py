"""Which images of a split a run had right: one bit an image, in a small file of the run's folder.

With it two runs can be compared image by image later, from their folders alone.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import write_json
from ..registry import UserError
from .folder import CORRECT

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Correct:
    """Which images a run had right.

    Args:
        split_hash: Of the images that trained, validated and tested.
        test_hash: Of the test images and their classes alone, which seeds share.
        scores: By the key of a score, such as ``test.last``: bool (n,), in the split's order.
    """

    split_hash: str
    test_hash: str
    scores: dict[str, np.ndarray]


def pack(correct: Iterable[bool]) -> dict[str, Any]:
    """Return bits ready for JSON: how many, and eight to a byte in base 64.

    >>> pack([True, False, True])
    {'n': 3, 'bits': 'oA=='}
    """
    import numpy as np

    values = np.asarray(correct, dtype=bool)
    return {"n": len(values), "bits": base64.b64encode(np.packbits(values).tobytes()).decode("ascii")}


def unpack(packed: dict[str, Any]) -> np.ndarray:
    """Return what ``pack`` was given, as a bool array.

    Raises:
        ValueError: It is damaged.
    """
    import numpy as np

    content = np.frombuffer(base64.b64decode(packed["bits"], validate=True), dtype=np.uint8)
    if len(content) != -(-packed["n"] // 8):
        raise ValueError(f"{len(content)} bytes do not hold {packed['n']} images")
    return np.unpackbits(content, count=packed["n"]).astype(bool)


def write_correct(folder: Path, split_hash: str, test_hash: str, scores: dict[str, dict[str, Any]]) -> None:
    """Write the file of a run; ``scores`` holds packed bits by the key of a score."""
    write_json(folder / CORRECT, {"split_hash": split_hash, "test_hash": test_hash, "scores": scores})


def read_correct(folder: str | Path) -> Correct | None:
    """Return which images a run had right; None for a run of an earlier version, which has no such file.

    Raises:
        UserError: The file is damaged.
    """
    path = Path(folder) / CORRECT
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        scores = {key: unpack(packed) for key, packed in found["scores"].items()}
        return Correct(found["split_hash"], found["test_hash"], scores)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{str(path)!r} is damaged: {error}") from error
