"""Whether runs of one table learn from the same images, seed by seed, and are tested on the same images."""

from __future__ import annotations

from pathlib import Path

from ..registry import UserError


class SameImages:
    """Compares the images of a group's runs, one run after the other.

    Args:
        group: The settings that tell the group from others; empty where there is one.
    """

    def __init__(self, group: str):
        self.where = f" of {group}" if group else ""
        self.splits: dict[int, tuple[Path, str]] = {}  # by seed, a run and its split hash
        self.test: tuple[Path, str] | None = None  # a run and its test hash

    def check(self, seed: int, folder: Path, split_hash: str, test_hash: str | None) -> None:
        """Compare a run with those before it.

        Args:
            seed: Of the run.
            folder: Its folder.
            split_hash: Of the images that train, validate and test: the same for all runs of one seed.
            test_hash: Of the test images: the same for all seeds. None for a run of an earlier version.

        Raises:
            UserError: It has other images than an earlier one.
        """
        other, before = self.splits.setdefault(seed, (folder, split_hash))
        if before != split_hash:
            self._refuse(other, folder, f"their split hashes are {before} and {split_hash}")
        if test_hash is None:
            return
        self.test = self.test or (folder, test_hash)
        other, before = self.test
        if before != test_hash:
            self._refuse(other, folder, f"they have other test images (hashes {before} and {test_hash})")

    def _refuse(self, other: Path, folder: Path, why: str) -> None:
        raise UserError(
            f"{other} and {folder} cannot be in one table{self.where}: {why}, so the data has changed between them; "
            "remove one of them, or choose another --output"
        )
