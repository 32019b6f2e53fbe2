"""A comparison runs every cell once, continues where it stopped, and its table holds the scores of the runs."""

import json
import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipvp.config.schema import RunConfig
from clipvp.config.values import to_dict
from clipvp.registry import UserError
from clipvp.results.compare import Cell, finished, grid, markdown, summarise, with_overrides
from clipvp.results.tables import SCORES


def run_of(seed: int, last: float, best: float | None = None, **more) -> dict:
    metrics = {"test.last": {"acc1": last}, "test.best_val": {"acc1": best}, "val.best": {"acc1": None}}
    return {"seed": seed, "metrics": {**metrics, **more}, "seconds": {"training": 1.0, "testing": 0.5}}


# The grid


def test_a_grid_is_every_method_with_every_combination():
    methods = {"flm": {"mapping.refresh": "never"}, "ilm": {"mapping.refresh": 1}}
    cells = grid(methods, {"optim.lr": [0.1, 0.2], "seed": [5]})
    assert cells == [
        Cell("flm optim.lr=0.1 seed=5", {"mapping.refresh": "never", "optim.lr": 0.1, "seed": 5}),
        Cell("flm optim.lr=0.2 seed=5", {"mapping.refresh": "never", "optim.lr": 0.2, "seed": 5}),
        Cell("ilm optim.lr=0.1 seed=5", {"mapping.refresh": 1, "optim.lr": 0.1, "seed": 5}),
        Cell("ilm optim.lr=0.2 seed=5", {"mapping.refresh": 1, "optim.lr": 0.2, "seed": 5}),
    ]
    assert grid({}, {}) == [Cell("base", {})]
    assert grid({}, {"a": []}) == []


def test_overrides_change_what_they_name_and_nothing_else(tmp_path):
    base = RunConfig()
    config = with_overrides(base, {"optim.lr": 0.5, "data.name": "digits"}, 4, tmp_path / "cell")
    assert config.optim.lr == 0.5 and config.data.name == "digits" and config.seed == 4
    assert config.output == str(tmp_path / "cell")
    values, before = to_dict(config), to_dict(base)
    values["optim"]["lr"], values["data"]["name"] = before["optim"]["lr"], before["data"]["name"]
    rest = {"seed": 0, "output": base.output, "resume": "never"}
    assert {**values, **rest} == before
    assert base == RunConfig()


@pytest.mark.parametrize(
    "key",
    ["optim.lrr", "opt.lr", "lr", "optim.lr.more", "", "optim", "prompt.width", "optim.groups.mapping.lrr"],
)
def test_overrides_of_unknown_keys(key, tmp_path):
    with pytest.raises(UserError) as error:
        with_overrides(RunConfig(), {key: 1}, 0, tmp_path)
    assert key.rpartition(".")[2] in str(error.value)


def test_overrides_choose_the_keys_that_they_may_use(tmp_path):
    overrides = {"prompt.kind": "border", "prompt.width": 8, "mapping.kind": "random"}
    config = with_overrides(RunConfig(), overrides, 0, tmp_path)
    assert (config.prompt.kind, config.prompt.width, config.mapping.kind) == ("border", 8, "random")
    assert not hasattr(config.prompt, "image_size") and not hasattr(config.mapping, "refresh")
    grouped = with_overrides(RunConfig(), {"optim.groups.mapping.lr": 0.5}, 0, tmp_path)
    assert grouped.optim.group("mapping").lr == 0.5


# Finished cells


def write_results(folder, config: RunConfig, **more) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps({"config": to_dict(config), **more}))


def test_a_cell_is_finished_when_its_results_are_of_its_config(tmp_path):
    config = with_overrides(RunConfig(), {"optim.lr": 0.5}, 1, tmp_path / "cell")
    assert finished(config) is None
    write_results(tmp_path / "cell", config, seed=1)
    assert finished(config)["seed"] == 1
    shown = with_overrides(RunConfig(), {"optim.lr": 0.5, "train.progress": False}, 1, tmp_path / "cell")
    assert finished(shown)["seed"] == 1  # how it is shown is not what it computes
    other = with_overrides(RunConfig(), {"optim.lr": 0.6}, 2, tmp_path / "cell")
    with pytest.raises(UserError, match="holds a run of another config .*optim.lr.*seed"):
        finished(other)


def test_a_cell_that_did_not_finish_continues(tmp_path):
    config = with_overrides(RunConfig(overwrite=True), {}, 1, tmp_path / "cell")
    (tmp_path / "cell").mkdir()
    (tmp_path / "cell" / "metrics.jsonl").write_text("")
    assert finished(config) is None
    assert config.resume == "auto" and not config.overwrite


# The table

SHARES = st.lists(st.floats(0, 1), min_size=1, max_size=6)


@settings(max_examples=100, deadline=None)
@given(SHARES)
def test_means_and_deviations_are_numpys(shares):
    (row,) = summarise({"cell": [run_of(seed, share) for seed, share in enumerate(shares)]})
    assert row["cell"] == "cell" and row["seeds"] == list(range(len(shares)))
    score = row["test.last"]
    assert score["values"] == shares and score["mean"] == pytest.approx(np.mean(shares), abs=1e-12)
    if len(shares) > 1:
        assert score["std"] == pytest.approx(np.std(shares, ddof=1), abs=1e-9)
    else:
        assert score["std"] is None
    assert row["test.best_val"] is None and row["val.best"] is None
    assert row["seconds"] == 1.5
    json.dumps(row, allow_nan=False)


def test_the_table_shows_percent_mean_and_deviation_of_what_there_is():
    cells = {
        "flm": [run_of(0, 0.5, 0.25), run_of(1, 0.6, 0.75)],
        "ilm": [run_of(0, 0.8, 0.9)],
    }
    lines = markdown(summarise(cells)).splitlines()
    assert len(lines) == 4 and all(line.startswith("|") and line.endswith("|") for line in lines)
    head, flm, ilm = ([part.strip() for part in lines[i].strip("|").split("|")] for i in (0, 2, 3))
    names = [f"{SCORES[key]} (%)" for key in ("test.best_val", "test.last")]
    assert head == ["", *names, "seeds", "seconds a run"]
    deviation = 100 * statistics.stdev([0.5, 0.6])
    assert flm == ["flm", f"50.0 ± {100 * math.sqrt(0.125):.1f}", f"55.0 ± {deviation:.1f}", "2", "2"]
    assert ilm == ["ilm", "90.0", "80.0", "1", "2"]


def test_a_score_that_some_seeds_lack_is_left_out():
    (row,) = summarise({"cell": [run_of(0, 0.5, 0.6), run_of(1, 0.5)]})
    assert row["test.best_val"] is None and "-" not in markdown([row]).splitlines()[2]


def test_the_best_on_test_has_a_column_of_that_name():
    best = {"test.best_on_test": {"acc1": 0.75}}
    rows = summarise({"cell": [run_of(0, 0.5, **best), run_of(1, 0.5, **best)]})
    assert rows[0]["test.best_on_test"]["mean"] == 0.75
    assert f"{SCORES['test.best_on_test']} (%)" in markdown(rows)
    assert "best on test" not in markdown(summarise({"cell": [run_of(0, 0.5)]}))
