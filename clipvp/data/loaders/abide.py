"""ABIDE: brain scans of people with and without autism, as images of what moves together (``nilearn``).

Each scan is 200 time series, one a region. Its image is the upper triangle of their correlations; the rest is empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...config.schema import DataConfig
from ...registry import UserError
from ..sets import ImageSet
from .raw import RawTask, hash_files, package_version

CLASS_NAMES = ["non ASD", "ASD"]
NUM_REGIONS = 200
_TEST_SHARE = 0.1
_DERIVATIVE = "rois_cc200"
# The release that ILM-VP's reference reads: CPAC, band-pass filtered, global signal regressed, every subject with a
# file (1035), whatever its quality was judged to be.
_RELEASE = {
    "pipeline": "cpac",
    "band_pass_filtering": True,
    "global_signal_regression": True,
    "quality_checked": False,
}
_FOLDER = Path("cpac", "filt_global")


def load_abide(config: DataConfig) -> RawTask:
    """Load ABIDE I as the Preprocessed Connectomes Project gives it: 1035 subjects, one in ten of a class tests.

    nilearn fetches the files once, into its own folder ($NILEARN_DATA, else ~/nilearn_data).

    Raises:
        UserError: nilearn is missing, or its files are and cannot be fetched.
    """
    package_version("abide", "nilearn", "abide")
    subjects, folder = _fetch([])
    paths = [str(folder / f"{name}_{_DERIVATIVE}.1D") for name in subjects["FILE_ID"]]
    if not all(Path(path).is_file() for path in paths):
        _fetch([_DERIVATIVE])
    labels = 2 - np.asarray(subjects["DX_GROUP"], np.int64)  # the file's 1 is autism, 2 is control
    everything = ImageSet(
        _Correlations(paths), labels, "abide", f"correlation 1 {hash_files(folder, paths)[0]}"
    )
    train, test = reference_split([str(name) for name in subjects["FILE_ID"]], labels)
    info = {"from": f"ABIDE I, Preprocessed Connectomes Project, {_FOLDER}, {_DERIVATIVE}"}
    sets = everything.subset(train), None, everything.subset(test)
    return RawTask(list(CLASS_NAMES), *sets, info=info, empty="lower_triangle")


def reference_split(names: Sequence[str], labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the places of the training and the test subjects, ascending: the split of ILM-VP's reference.

    It is scikit-learn's stratified one with seed 1, one in ten for testing, of the subjects in the order of names.

    Args:
        names: Of the subjects' files.
        labels: int64 (n,), their classes.
    """
    from sklearn.model_selection import train_test_split

    order = np.array(sorted(range(len(names)), key=names.__getitem__))
    train, test = train_test_split(order, test_size=_TEST_SHARE, stratify=labels[order], random_state=1)
    return np.sort(train), np.sort(test)


def correlation_image(series: np.ndarray) -> np.ndarray:
    """Return the image of a scan: correlations of its regions, min-max scaled, above the diagonal; 0 elsewhere.

    Args:
        series: (time, n) values of n regions. A region that never changes correlates with none: 0.

    Returns:
        (n, n) in [0, 1].

    Source: the reference of ILM-VP (arXiv 2211.11635). It has the same values in another order: those below the
    diagonal, row by row, in the places above it, row by row.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        correlations = np.nan_to_num(np.corrcoef(np.nan_to_num(series), rowvar=False))
    upper = np.triu_indices(len(correlations), k=1)
    values = correlations[upper]
    image = np.zeros_like(correlations)
    image[upper] = (values - values.min()) / max(np.ptp(values), np.finfo(float).tiny)
    return image


class _Correlations(Sequence):
    """The images of files of time series, made when they are asked for."""

    def __init__(self, paths: list[str]):
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> np.ndarray:
        series = np.loadtxt(self._paths[index], ndmin=2)
        if series.shape[1] != NUM_REGIONS or len(series) < 2:
            raise ValueError(
                f"{self._paths[index]} holds {series.shape}, not time series of {NUM_REGIONS} regions"
            )
        return correlation_image(series)


def _fetch(derivatives: list[str]) -> tuple[Any, Path]:
    """Return nilearn's table of subjects and the folder of their files; fetch what is asked for and is missing."""
    from nilearn.datasets import fetch_abide_pcp, get_data_dirs

    try:
        found = fetch_abide_pcp(derivatives=derivatives, verbose=0, **_RELEASE)
    except Exception as error:  # of requests, of the file system, of pandas on a damaged table
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"abide: nilearn cannot give its files: {reason}") from error
    subjects = found["phenotypic"]
    homes = [Path(home) / "ABIDE_pcp" for home in get_data_dirs()]
    return subjects, next(home for home in homes if home.is_dir()) / _FOLDER
