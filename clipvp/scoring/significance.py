"""Intervals, tests and corrections for accuracies: pure functions on arrays; nothing here reads a run.

What an interval is over says what is drawn anew: *seeds* (shots, order and start of another run), *images* (another
test set of the same kind), or both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
T_SEEDS, T_BOTH = "t over seeds", "t over seeds and images"
BOOTSTRAP_IMAGES, BOOTSTRAP_SEEDS = "bootstrap over images", "bootstrap over seeds"
MCNEMAR = "McNemar's test, mid-p"
_DRAWS = 4000


class Interval(NamedTuple):
    """A mean with its confidence interval; arrays where several were computed at once.

    Args:
        mean: The estimate.
        low: Lower end.
        high: Upper end.
        p: Two-sided p of a mean of 0; None where it was not computed.
        how: What was drawn anew, and how the interval was made.
    """

    mean: NDArray | float
    low: NDArray | float
    high: NDArray | float
    p: NDArray | float | None
    how: str


def over_seeds(values: ArrayLike, level: float = LEVEL) -> Interval:
    """Return Student's interval of the mean over seeds.

    Args:
        values: (..., S), one number a seed, S >= 2.
        level: Share of such intervals that hold the truth.

    >>> mean, low, high, *_ = over_seeds([0.5, 0.6, 0.7])
    >>> round(mean, 3), round(low, 3), round(high, 3)
    (0.6, 0.352, 0.848)
    """
    from scipy import stats

    values = _array(values, 1)
    seeds = _at_least_two(values.shape[-1], "seeds")
    mean, error = values.mean(-1), np.sqrt(values.var(-1, ddof=1) / seeds)
    half = stats.t.ppf((1 + level) / 2, seeds - 1) * error
    with np.errstate(invalid="ignore", divide="ignore"):
        p = np.where(
            error > 0, 2 * stats.t.sf(np.abs(mean) / error, seeds - 1), np.where(mean == 0, 1.0, 0.0)
        )
    return Interval(*map(_plain, (mean, mean - half, mean + half, p)), T_SEEDS)


def over_seeds_and_images(values: ArrayLike, level: float = LEVEL) -> Interval:
    """Return the interval of the mean over seeds and images, both drawn at random and crossed.

    With mean squares A of seeds, B of images and E of the rest, and Student's quantiles t, half its width is the root
    of (t[S - 1]^2 A + t[N - 1]^2 max(B - E, 0)) / (S N). It holds its level with few seeds, where a bootstrap over so
    few seeds does not. It is never narrower than images alone make it, so that seeds that agree by chance do not make
    it vanish; where seeds do not differ at all it is somewhat too wide.

    Args:
        values: (..., S, N), S >= 2 seeds and N >= 2 images: 1 where an image is right, or differences of two methods.
        level: Share of such intervals that hold the truth.

    Source: modified large-sample intervals of two-way random models, Burdick and Graybill (1992), Confidence intervals
    on variance components.
    """
    from scipy import stats

    values = _array(values, 2)
    seeds = _at_least_two(values.shape[-2], "seeds")
    images = _at_least_two(values.shape[-1], "images")
    mean = values.mean((-2, -1))
    of_seeds = images * values.mean(-1).var(-1, ddof=1)
    of_images = seeds * values.mean(-2).var(-1, ddof=1)
    total = ((values - mean[..., None, None]) ** 2).sum((-2, -1))
    rest = total - (seeds - 1) * of_seeds - (images - 1) * of_images
    more = np.maximum(of_images - np.maximum(rest, 0) / ((seeds - 1) * (images - 1)), 0)

    def half(tail: float) -> NDArray:
        by_seeds, by_images = (stats.t.isf(tail, count - 1) ** 2 for count in (seeds, images))
        both = np.maximum(by_seeds * of_seeds + by_images * more, by_images * of_images)
        return np.sqrt(both / (seeds * images))

    width = half((1 - level) / 2)
    p = _p_of_zero(float(mean), half) if mean.ndim == 0 else None
    return Interval(*map(_plain, (mean, mean - width, mean + width)), p, T_BOTH)


def bootstrap_over_images(
    values: ArrayLike, level: float = LEVEL, draws: int = _DRAWS, seed: int = 0
) -> Interval:
    """Return the percentile bootstrap of the mean over images, the trained prompts held fixed.

    Args:
        values: (N,), or (S, N), whose seeds are averaged for each image.
        level: Share of such intervals that hold the truth.
        draws: Resampled test sets.
        seed: Of the resampling.
    """
    values = _array(values, 1)
    if values.ndim > 1:
        values = values.mean(0)
    # Images of one value are alike, so that drawing images is drawing how many have each value.
    levels, counts = np.unique(values, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(values), counts / len(values), size=draws)
    low, high = np.quantile(drawn @ levels / len(values), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values.mean()), float(low), float(high), None, BOOTSTRAP_IMAGES)


def bootstrap_over_seeds(
    values: ArrayLike, level: float = LEVEL, draws: int = _DRAWS, seed: int = 0
) -> Interval:
    """Return the percentile bootstrap of the mean over seeds, widened as few seeds need it.

    The distribution is stretched about its mean so that of normal values it is as wide as Student's interval. With
    fewer than five seeds there are too few different draws; use ``over_seeds``.

    Args:
        values: (..., S), one number a seed, S >= 2.
        level: Share of such intervals that hold the truth.
        draws: Resampled sets of seeds.
        seed: Of the resampling.

    Source: Hesterberg (2015), What teachers should know about the bootstrap, the expanded percentile interval.
    """
    from scipy import stats

    values = _array(values, 1)
    seeds = _at_least_two(values.shape[-1], "seeds")
    mean = values.mean(-1)
    weights = np.random.default_rng(seed).multinomial(seeds, np.full(seeds, 1 / seeds), size=draws) / seeds
    drawn = (values - mean[..., None]) @ weights.T
    tail = (1 + level) / 2
    stretch = stats.t.ppf(tail, seeds - 1) / stats.norm.ppf(tail) * np.sqrt(seeds / (seeds - 1))
    low, high = np.quantile(drawn, [1 - tail, tail], axis=-1) * stretch
    return Interval(*map(_plain, (mean, mean + low, mean + high)), None, BOOTSTRAP_SEEDS)


def mcnemar(first: ArrayLike, second: ArrayLike) -> float:
    """Return the two-sided p of two methods on one test set, from the images that one of them alone has right.

    Args:
        first: (N,), true where the first method is right.
        second: (N,), the same of the second.

    Source: McNemar (1947); the mid-p of Fagerland, Lydersen and Laake (2013), which holds its level with few images.

    >>> round(mcnemar([1] * 9 + [0] * 2, [0] * 9 + [1] * 2), 4)
    0.0386
    """
    from scipy import stats

    first, second = (np.asarray(given, dtype=bool) for given in (first, second))
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"two rows of images are compared, not {first.shape} and {second.shape}")
    gained, lost = int((first & ~second).sum()), int((second & ~first).sum())
    if gained == lost:
        return 1.0
    fewer, both = min(gained, lost), gained + lost
    return float(2 * stats.binom.cdf(fewer, both, 0.5) - stats.binom.pmf(fewer, both, 0.5))


def holm(p_values: ArrayLike) -> list[float]:
    """Return p values corrected for their number, in the order given, against a false alarm in any of them (Holm 1979).

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    p_values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    corrected = np.empty_like(p_values)
    corrected[order] = np.minimum(np.maximum.accumulate(p_values[order] * factors), 1)
    return corrected.tolist()


def _p_of_zero(mean: float, half: Callable[[float], NDArray]) -> float:
    """Return the p at which an interval of a level 1 - p, ``half(p / 2)`` to either side, just touches 0."""
    if mean == 0:
        return 1.0
    low, high = -100 * np.log(10), 0.0  # of log p
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if half(np.exp(middle) / 2) < abs(mean) else (middle, high)
    return float(np.exp(high))


def _plain(value: NDArray) -> NDArray | float:
    return value if np.ndim(value) else float(value)


def _array(values: ArrayLike, dimensions: int) -> NDArray:
    found = np.asarray(values, dtype=np.float64)
    if found.ndim < dimensions or not found.size:
        raise ValueError(
            f"values are {found.shape}; give at least {dimensions} dimensions that are not empty"
        )
    return found


def _at_least_two(count: int, what: str) -> int:
    if count < 2:
        raise ValueError(f"an interval over {what} needs two or more, got {count}")
    return count
