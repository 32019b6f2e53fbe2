"""Intervals and tests hold their level in simulations with known accuracies, and formulas are the definitions."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from clipvp.scoring.significance import (
    T_BOTH,
    bootstrap_over_images,
    bootstrap_over_seeds,
    holm,
    mcnemar,
    over_seeds,
    over_seeds_and_images,
)

FIRST, SECOND = 0.60, 0.65  # the accuracies of two methods over all seeds and images there could be


def simulated(
    sims: int, seeds: int, images: int, seed_effect: float, image_effect: float = 0.6, rng: int = 0
):
    """Return which images two methods have right, bool (sims, seeds, images) each.

    An image is right where a normal number is below the accuracy's quantile. Part of it belongs to the image, for both
    methods, and part to the seed.
    """
    generator = np.random.default_rng(rng)
    rest = math.sqrt(1 - seed_effect**2 - image_effect**2)
    of_images = image_effect * generator.standard_normal((sims, 1, images))

    def right(accuracy: float):
        of_seeds = seed_effect * generator.standard_normal((sims, seeds, 1))
        score = of_seeds + of_images + rest * generator.standard_normal((sims, seeds, images))
        return score < stats.norm.ppf(accuracy)

    return right(FIRST), right(SECOND)


def coverage(interval, truth) -> float:
    return float(np.mean((interval.low <= truth) & (truth <= interval.high)))


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
@pytest.mark.parametrize("seed_effect", [0.05, 0.12, 0.25])
def test_intervals_over_seeds_and_images_cover_the_truth(seeds, seed_effect):
    """With two seeds, or seeds that hardly differ, intervals may be too wide, never too narrow."""
    first, second = simulated(1200, seeds, 200, seed_effect, rng=seeds)
    difference = coverage(over_seeds_and_images(second.astype(float) - first), SECOND - FIRST)
    accuracy = coverage(over_seeds_and_images(second), SECOND)
    assert 0.93 <= difference <= (0.97 if seeds >= 3 and seed_effect > 0.1 else 1)
    assert 0.93 <= accuracy <= (0.97 if seeds >= 5 else 1)


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_intervals_over_seeds_cover_the_accuracy_on_one_test_set(seeds):
    """Draws of shots differ, and the test images are the same."""
    values = 0.6 + 0.03 * np.random.default_rng(0).standard_normal((4000, seeds))
    assert 0.93 <= coverage(over_seeds(values), 0.6) <= 0.97


@pytest.mark.parametrize("seeds", [5, 10])
def test_bootstraps_over_seeds_cover_it_from_five_seeds_on(seeds):
    values = 0.6 + 0.03 * np.random.default_rng(0).standard_normal((4000, seeds))
    assert 0.93 <= coverage(bootstrap_over_seeds(values, draws=1000), 0.6) <= 0.97


def test_bootstraps_over_images_cover_the_accuracy_of_fixed_prompts():
    first, second = simulated(800, 1, 300, 0.0, rng=3)
    found = [bootstrap_over_images(row, draws=1000) for row in (second.astype(float) - first)[:, 0]]
    assert 0.93 <= np.mean([i.low <= SECOND - FIRST <= i.high for i in found]) <= 0.97


def test_mcnemar_holds_its_level_and_has_power():
    generator = np.random.default_rng(0)
    hard = generator.random((1500, 1, 150))
    same = (hard + 0.4 * generator.standard_normal((1500, 2, 150))) < 0.6
    false_alarms = np.mean([mcnemar(*pair) < 0.05 for pair in same])
    assert 0.02 <= false_alarms <= 0.06
    assert mcnemar([1] * 30 + [0] * 10, [0] * 15 + [1] * 15 + [0] * 10) < 0.001


def test_an_interval_over_seeds_and_images_is_the_analysis_of_variance():
    generator = np.random.default_rng(1)
    values = generator.random((3, 7)) + generator.random(7)
    mean = values.mean()
    rows, columns = values.mean(1), values.mean(0)
    a = 7 * sum((rows - mean) ** 2) / 2
    b = 3 * sum((columns - mean) ** 2) / 6
    e = sum((values[s, i] - rows[s] - columns[i] + mean) ** 2 for s in range(3) for i in range(7)) / 12
    by_seeds, by_images = stats.t.ppf(0.975, 2) ** 2, stats.t.ppf(0.975, 6) ** 2
    half = math.sqrt(max(by_seeds * a + by_images * max(b - e, 0), by_images * b) / 21)
    found = over_seeds_and_images(values)
    assert found[:3] == pytest.approx((mean, mean - half, mean + half)) and found.how == T_BOTH


@pytest.mark.parametrize("shift", [-0.3, 0.02, 0.4])
def test_p_is_the_level_at_which_the_interval_touches_zero(shift):
    values = np.random.default_rng(2).normal(shift, 0.3, (4, 30))
    p = over_seeds_and_images(values).p
    touching = over_seeds_and_images(values, level=1 - p)
    assert min(abs(touching.low), abs(touching.high)) == pytest.approx(0, abs=1e-6)
    row = values.mean(1)
    touching = over_seeds(row, level=1 - over_seeds(row).p)
    assert min(abs(touching.low), abs(touching.high)) == pytest.approx(0, abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=30), st.randoms(use_true_random=False))
def test_mcnemar_is_symmetric_and_says_nothing_of_equals(first, random):
    second = [random.random() < 0.5 for _ in first]
    assert mcnemar(first, second) == mcnemar(second, first) and 0 < mcnemar(first, second) <= 1
    assert mcnemar(first, first) == 1


def test_equal_methods_differ_by_nothing():
    found = over_seeds_and_images(np.zeros((3, 10)))
    assert found[:4] == (0, 0, 0, 1) and over_seeds([0.0, 0.0])[:4] == (0, 0, 0, 1)
    assert bootstrap_over_images(np.ones(9))[:3] == (1, 1, 1)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_its_definition(p_values):
    corrected = holm(p_values)
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    for rank, place in enumerate(order):
        stepped = [min(1, (len(order) - r) * p_values[order[r]]) for r in range(rank + 1)]
        assert corrected[place] == pytest.approx(max(stepped))


def test_what_cannot_be_said_is_refused():
    for call in (lambda: over_seeds([0.5]), lambda: over_seeds_and_images(np.ones((1, 9)))):
        with pytest.raises(ValueError, match="two or more"):
            call()
    with pytest.raises(ValueError, match="rows of images"):
        mcnemar([1, 0], [1])


def test_seeds_that_agree_by_chance_do_not_make_an_interval_vanish():
    values = np.array([[1, 0] * 20, [0, 1] * 20, [1, 1, 0, 0] * 10], float)  # every seed has 0.5
    found = over_seeds_and_images(values)
    assert found.high - found.low >= 2 * 1.96 * values.mean(0).std() / math.sqrt(40)
