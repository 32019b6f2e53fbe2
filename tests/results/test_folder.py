"""The folder of a run, and what people see while it runs."""

import json
import time

import pytest

from clipvp.config.schema import RunConfig
from clipvp.progress import Clock, Progress
from clipvp.registry import UserError
from clipvp.results.folder import (
    CHECKPOINTS,
    CONFIG,
    METRICS,
    PLOTS,
    PROMPT,
    RESULTS,
    RunFolder,
    read_results,
)

OURS = [CONFIG, METRICS, RESULTS, CHECKPOINTS, PROMPT, PLOTS]


def test_nothing_is_made_before_the_start(tmp_path):
    run = RunFolder(tmp_path / "deep" / "run")
    run.check(resume=False, overwrite=False)
    assert list(tmp_path.iterdir()) == [] and not run.holds_run()
    run.start(RunConfig(), overwrite=False)
    assert [path.name for path in run.path.iterdir()] == [CONFIG] and run.holds_run()


@pytest.mark.parametrize("name", OURS)
def test_any_file_of_a_run_refuses_another_run(name, tmp_path):
    (tmp_path / name).write_text("")
    with pytest.raises(UserError, match="holds a run already"):
        RunFolder(tmp_path).check(resume=False, overwrite=False)
    RunFolder(tmp_path).check(resume=True, overwrite=False)
    RunFolder(tmp_path).check(resume=False, overwrite=True)


def test_a_folder_of_other_things_may_be_used(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    RunFolder(tmp_path).check(resume=False, overwrite=False)


def test_overwriting_removes_what_a_run_leaves_and_nothing_else(tmp_path):
    for name in (CONFIG, METRICS, RESULTS):
        (tmp_path / name).write_text("old")
    for name in (CHECKPOINTS, PROMPT, PLOTS, "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("old")
    RunFolder(tmp_path).start(RunConfig(), overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([CONFIG, "other"])
    assert (tmp_path / CONFIG).read_text() != "old" and (tmp_path / "other" / "file").read_text() == "old"


def test_other_processes_write_nothing(tmp_path):
    run = RunFolder(tmp_path / "run", writes=False)
    run.start(RunConfig(), overwrite=True)
    run.write_metrics([{"epoch": 1}])
    run.write_results({})
    assert list(tmp_path.iterdir()) == []


def test_metrics_are_written_whole_and_hold_finite_numbers_only(tmp_path):
    run = RunFolder(tmp_path)
    run.write_metrics([{"epoch": 1, "loss": 0.5}])
    run.write_metrics([{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}])
    lines = (tmp_path / METRICS).read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    with pytest.raises(ValueError, match="JSON"):
        run.write_metrics([{"epoch": 1, "loss": float("nan")}])
    assert (tmp_path / METRICS).read_text().splitlines() == lines


def test_missing_or_damaged_results_are_an_error(tmp_path):
    with pytest.raises(UserError, match="holds no finished run"):
        read_results(tmp_path)
    (tmp_path / RESULTS).write_text('{"half": ')
    with pytest.raises(UserError, match="is damaged"):
        read_results(tmp_path)
    RunFolder(tmp_path).write_results({"Zoë": [1, None]})
    assert read_results(tmp_path) == {"Zoë": [1, None]}


# Time and bars


def test_a_clock_adds_up_by_phase_and_by_lap():
    clock = Clock({"training": 10.0})
    for _ in range(2):
        with clock("training"):
            time.sleep(0.01)
    with pytest.raises(ZeroDivisionError), clock("counting"):
        raise ZeroDivisionError  # time that ends in an error counts, too
    lap = clock.lap()
    assert set(lap) == {"training", "counting"} and 0.02 <= lap["training"] < 5
    assert clock.seconds["training"] >= 10.02 and clock.seconds["counting"] >= 0
    assert clock.lap() == {}


def test_a_watched_pass_is_the_pass(capsys):
    batches = [("images", [1, 2, 3]), ("more", [4])]
    for shown in (False, True):
        progress = Progress(shown)
        assert list(progress.watch(4, "counting")(batches)) == batches
        progress.line("a line")
    printed = capsys.readouterr()
    assert printed.out.count("a line") == 1 and printed.err == ""  # no bar without a terminal


def test_a_bar_asks_for_values_seldom(monkeypatch):
    asked = []
    monkeypatch.setattr("clipvp.progress.bar_of_place", FakeBar)
    with Progress(True).bar(1000, "training") as bar:
        for _ in range(1000):
            bar.advance(1, lambda: asked.append(1) or {"loss": 1.0})
        assert bar._bar.done == 1000
    assert len(asked) <= 1 + 2 * 10  # twice a second, of a test that takes far less than ten


class FakeBar:
    disable = False

    def __init__(self, **_):
        self.done = 0

    def update(self, images):
        self.done += images

    def set_postfix(self, *_, **__):
        pass

    def close(self):
        pass
