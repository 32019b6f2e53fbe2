"""The pick is by validation alone, differences are those of the runs, and other images never share a table."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from clipvp.comparison.advice import next_things
from clipvp.comparison.judge import Run, check_splits, choose, difference, interval, judge, standard_error
from clipvp.comparison.rows import make_rows
from clipvp.registry import UserError
from clipvp.results.compare import as_csv, as_latex, markdown, table_of
from clipvp.results.correct import Correct
from clipvp.scoring import significance
from clipvp.scoring.significance import over_seeds_and_images


def run_of(
    seed: int,
    val: list[int] | None,
    test: list[int],
    *,
    features: bool = True,
    seconds: float = 1.0,
    split: str = "same",
    test_hash: str = "test",
    bits: bool = True,
) -> Run:
    def score(right):
        return {"acc1": float(np.mean(right)) if right else None, "n": len(right or [])}

    results = {
        "seed": seed,
        "task": "things",
        "metrics": {
            "test.last": score(test),
            "test.best_val": score(test if val else None),
            "val.best": score(val),
        },
        "seconds": {
            "training": seconds,
            "testing": 7.0,
            **({"features": 100.0} if features else {"counting": 0.0}),
        },
        "split_hash": f"{split}{seed}",
        "run_info": {"trainable_parameters": 0 if features else 300, "fitted_numbers": 40 if features else 0},
        "source": {"name": "offline:lite0", "canvas": [64, 64]},
        "data": {"shots": 16},
        "num_train": 10,
        "num_val": len(val or []),
        "num_test": len(test),
    }
    scores = {"test.last": np.array(test, bool), "test.best_val": np.array(test, bool)}
    scores |= {"val.best": np.array(val, bool)} if val else {}
    right = Correct(results["split_hash"], test_hash, scores) if bits else None
    return Run(results, Path(f"runs/{split}{seed}"), right)


def bits(share: float, count: int, seed: int = 0) -> list[int]:
    return (
        np.random.default_rng(seed)
        .permutation([1] * round(share * count) + [0] * (count - round(share * count)))
        .tolist()
    )


def test_the_pick_is_by_validation_whatever_the_test_says():
    cells = {
        "good on test": [run_of(0, bits(0.4, 40), bits(0.9, 50))],
        "good on validation": [run_of(0, bits(0.6, 40), bits(0.3, 50))],
    }
    verdict = judge("", cells)
    assert verdict.pick == "good on validation" and verdict.run.seed == 0
    swapped = {
        name: [run_of(0, run.right.scores["val.best"].tolist(), bits(0.5, 50)) for run in runs]
        for name, runs in cells.items()
    }
    assert choose(swapped) == verdict.pick


def test_a_prompt_is_picked_where_it_is_better_by_more_than_a_standard_error():
    cheap = bits(0.5, 100)
    near, far = cheap[:], cheap[:]
    wrong = [place for place, right in enumerate(cheap) if not right]
    for place in wrong[:3]:  # one image more of a hundred, with five that differ
        near[place] = 1
    for place in [place for place, right in enumerate(cheap) if right][:2]:
        near[place] = 0
    for place in wrong[:20]:
        far[place] = 1
    for val, expected in ((near, "probe"), (far, "prompt")):
        cells = {
            "prompt": [run_of(0, val, bits(0.5, 20), features=False, seconds=500)],
            "probe": [run_of(0, cheap, bits(0.5, 20))],
        }
        assert choose(cells) == expected


def test_of_equals_the_quicker_is_picked_and_few_seeds_do_not_take_part():
    val, test = bits(0.5, 20), bits(0.5, 20)
    cells = {"slow": [run_of(0, val, test, seconds=9)], "quick": [run_of(0, val, test, seconds=2)]}
    assert choose(cells) == "quick"
    lucky = {"one seed": [run_of(0, bits(1, 20), test)], "two": [run_of(s, val, test) for s in (0, 1)]}
    assert choose(lucky) == "two"


def test_without_validation_nothing_is_picked():
    cells = {"a": [run_of(0, None, bits(0.5, 20))], "b": [run_of(0, None, bits(0.6, 20))]}
    verdict = judge("", cells)
    assert verdict.pick is None and "nothing is picked" in verdict.sentence
    assert make_rows(cells, verdict)[0]["tested"] == "test.last"


def test_a_difference_is_of_the_same_images_and_seeds():
    first = [run_of(seed, bits(0.5, 20), bits(0.8, 50, seed)) for seed in (0, 1, 2)]
    second = [run_of(seed, bits(0.5, 20), bits(0.6, 50, 10 + seed)) for seed in (1, 2, 3)]
    found = difference(first, second)
    assert found["seeds"] == [1, 2] and found["mean"] == pytest.approx(0.2)
    gap = np.array(
        [
            np.array(a.right.scores["test.last"], float) - b.right.scores["test.last"]
            for a, b in zip(first[1:], second[:2], strict=True)
        ]
    )
    expected = over_seeds_and_images(gap)
    assert (found["low"], found["high"], found["p"]) == pytest.approx(
        (expected.low, expected.high, expected.p)
    )
    assert set(found["intervals"]) == {
        significance.T_BOTH,
        significance.T_SEEDS,
        significance.BOOTSTRAP_IMAGES,
    }
    one = difference(first[:1], [run_of(0, bits(0.5, 20), bits(0.6, 50, 9))])
    assert (
        one["test"] == significance.MCNEMAR
        and 0 < one["p"] < 1
        and one["how"] == significance.BOOTSTRAP_IMAGES
    )


def test_runs_without_bits_or_of_other_test_images_are_compared_by_seed():
    first = [run_of(seed, bits(0.5, 20), bits(0.8, 50)) for seed in (0, 1, 2)]
    for more in ({"bits": False}, {"test_hash": "other"}):
        second = [run_of(seed, bits(0.5, 20), bits(0.6, 50), **more) for seed in (0, 1, 2)]
        found = difference(first, second)
        assert (
            found["test"] == significance.T_SEEDS and significance.BOOTSTRAP_IMAGES not in found["intervals"]
        )
    assert difference(first[:1], [run_of(0, None, bits(0.6, 50), bits=False)])["p"] is None
    assert interval([run_of(0, None, bits(0.6, 50), bits=False)]) is None


def test_an_interval_is_of_shares():
    """Two seeds alone leave nearly everything open, but no accuracy is below 0 or above 1."""
    found = interval([run_of(seed, None, bits(0.5 + 0.2 * seed, 50), bits=False) for seed in (0, 1)])
    assert (found.low, found.high) == (0, 1) and found.how == significance.T_SEEDS


def test_results_of_other_images_are_refused():
    cells = {"a": [run_of(0, [1, 0], [1, 0])], "b": [run_of(0, [1, 0], [1, 0], split="other")]}
    with pytest.raises(UserError, match="same0 and other0.*data has changed"):
        judge("", cells)
    check_splits("", {"a": [run_of(0, [1], [1])], "b": [run_of(1, [1], [1], split="other")]})


def test_seeds_with_other_test_images_are_refused():
    """The folder was enlarged between them. A run of an earlier version does not say which images tested."""
    other = [run_of(1, [1, 0], [1, 0], test_hash="enlarged"), run_of(2, [1, 0], [1, 0], bits=False)]
    cells = {"a": [run_of(0, [1, 0], [1, 0]), *other]}
    with pytest.raises(
        UserError, match="same0 and .*same1 .*table of digits: .*images .hashes test and enlarged"
    ):
        judge("digits", cells)
    judge("digits", {"a": [run_of(0, [1, 0], [1, 0]), other[1]]})


def own_validation(runs: list[Run]) -> list[Run]:
    for run in runs:
        run.results["data"] = {"shots": None, "val_from": "val"}
    return runs


@pytest.mark.parametrize("known", [True, False])
def test_images_that_validate_in_all_seeds_count_once(known):
    first, second = bits(0.6, 40, 1), bits(0.5, 40, 2)
    test = [1, 0]

    def error(seeds, own):
        runs = [[run_of(s, val, test, bits=known) for s in range(seeds)] for val in (first, second)]
        return standard_error(*(own_validation(row) if own else row for row in runs))

    one = error(1, own=True)
    if known:
        assert one == pytest.approx(np.std(np.array(first) - second, ddof=1) / math.sqrt(40))
    assert error(5, own=True) == pytest.approx(one)  # five equal seeds tell no more than one
    assert error(5, own=False) < 0.5 * one  # those that drew their own images do


def test_an_image_that_validates_in_all_seeds_has_its_mean():
    first = own_validation([run_of(s, bits(0.6, 40, s), [1, 0]) for s in range(3)])
    second = own_validation([run_of(s, bits(0.5, 40, 9 + s), [1, 0]) for s in range(3)])
    rows = [np.stack([run.right.scores["val.best"] for run in runs]).mean(0) for runs in (first, second)]
    expected = np.std(rows[0] - rows[1], ddof=1) / math.sqrt(40)
    assert standard_error(first, second) == pytest.approx(expected)
    for more in ({"val_from": "carved from train"}, {"shots": 16}):  # drawn anew by each seed
        first[0].results["data"] = {"val_from": "val", "shots": None, **more}
        assert standard_error(first, second) != pytest.approx(expected)


SHARES = {0: 0.0, 1: 0.02, 2: -0.02}  # seeds differ


@pytest.fixture
def table():
    def runs(val, test, first, **more):
        return [
            run_of(seed, bits(val, 40, 1), bits(test + share, 60, first + seed), **more)
            for seed, share in SHARES.items()
        ]

    cells = {
        "probe": runs(0.7, 0.7, 0),
        "a_prompt_50%": runs(0.6, 0.65, 10, features=False, seconds=400),
        "rlm": runs(0.1, 0.1, 20),
    }
    verdict = judge("", cells)
    return verdict, make_rows(cells, verdict)


def test_the_sentence_says_what_to_use_and_how_it_stands_to_a_prompt(table):
    verdict, rows = table
    assert (
        verdict.sentence.startswith("use probe: 70.0 % (")
        and "of the test images, 1.0 seconds to train" in verdict.sentence
    )
    assert (
        "level with the best method that trains through the network, a_prompt_50%, within the interval (+5.0 points"
        in verdict.sentence
    )
    assert [row["pick"] for row in rows] == [True, False, False]


def test_rows_hold_costs_and_the_difference_to_the_pick(table):
    verdict, rows = table
    json.dumps(rows, allow_nan=False)
    probe, prompt, rlm = rows
    assert (probe["numbers"], prompt["numbers"]) == (40, 300)
    assert (probe["train_seconds"], prompt["train_seconds"]) == (1.0, 400.0) and probe["seconds"] == 108.0
    assert probe["minus_pick"] is None and rlm["minus_pick"]["mean"] == pytest.approx(-0.6)
    for pair, row in zip(verdict.pairs, rows[1:], strict=True):
        gap = row["minus_pick"]
        assert (
            gap["low"] == -pair["high"]
            and gap["high"] == -pair["low"]
            and gap["low"] <= gap["mean"] <= gap["high"]
        )
        assert gap["p"] <= gap["p_holm"] <= 1
    assert rlm["minus_pick"]["p_holm"] < 0.05 < prompt["minus_pick"]["p_holm"]


def test_the_table_is_the_same_in_every_format(table):
    _, rows = table
    body, headers = table_of(rows)
    text = markdown(rows)
    for cell in (*headers[1:], *(part for row in body for part in row)):
        assert cell.strip() in text
    assert body[0][0] == "* probe" and "70.0 ± 1.7" in text and "-60.0 (" in text
    lines = as_csv(rows).splitlines()
    assert len(lines) == 4 and lines[0].startswith("cell,seeds,test.best_val.mean")
    values = dict(zip(lines[0].split(","), lines[3].split(","), strict=True))
    assert values["cell"] == "rlm" and float(values["minus_pick.mean"]) == pytest.approx(-0.6)
    latex = as_latex(rows)
    assert latex.count(r"\\") == 4 and r"50\%" in latex and r"70.0 $\pm$ 1.7" in latex and "toprule" in latex


def test_what_is_advised_names_each_value_once():
    runs = {"probe": [run_of(0, bits(0.5, 40), bits(0.5, 60))]}
    runs["probe"][0].results["data"]["shots"] = 1
    lines = next_things(judge("", runs), runs, [], {}, 0)
    assert any("--vary '{data.shots: [1, 4]}'" in line for line in lines)
