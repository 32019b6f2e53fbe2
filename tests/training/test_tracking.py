"""Trackers are told what metrics.jsonl says; none by default, and one that is not there is told."""

import json
from collections import defaultdict

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from clipvp import RunConfig, UserError, build_classifier, fit
from clipvp.config.schema import TRACKERS
from clipvp.config.values import from_dict
from clipvp.training.tracking import check_trackers


def config(tiny_timm, tmp_path, report_to) -> RunConfig:
    return from_dict(
        {
            "source": {"name": tiny_timm, "canvas": 32},
            "prompt": {"image_size": 16},
            "train": {"epochs": 2, "progress": False, "report_to": report_to},
            "output": str(tmp_path / "run"),
        }
    )


def test_the_names_are_accelerates():
    assert set(TRACKERS) == set(LOGGER_TYPE_TO_CLASS)


def test_an_unknown_tracker_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="did you mean 'tensorboard'"):
        from_dict({"train": {"report_to": ["tensorbord"]}})


def test_a_tracker_that_is_not_installed_is_told(monkeypatch):
    monkeypatch.setattr("clipvp.training.tracking.get_available_trackers", lambda: [])
    with pytest.raises(UserError, match="wandb is not installed; run `pip install wandb`"):
        check_trackers(["wandb"])


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_holds_what_metrics_say(tiny_timm, tiny_task, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = config(tiny_timm, tmp_path, ["tensorboard"])
    result = fit(build_classifier(run, tiny_task), tiny_task, run)
    events = EventAccumulator(str(tmp_path / "run" / "logs" / "clipvp"))
    events.Reload()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for key in ("train_loss", "val_acc1", "lr"):
        found = [(event.step, event.value) for event in events.Scalars(key)]
        assert found == [(row["epoch"], pytest.approx(row[key], rel=1e-5)) for row in rows]
    assert result.results["metrics"]["test.last"]["acc1"] == pytest.approx(
        events.Scalars("test.last.acc1")[0].value
    )
    assert set(events.Tags()["images"]) >= {"mapping", "prompt"}


def told(run, tiny_task, report) -> None:
    """Fit, and hold what a tracker was told, step by step, against the run's own files."""
    result = fit(build_classifier(run, tiny_task), tiny_task, run)
    rows = report()
    for epoch in result.history:
        values = {key: value for row in rows[epoch["epoch"]] for key, value in row.items()}
        assert [values[key] for key in ("train_loss", "lr")] == [epoch["train_loss"], epoch["lr"]]
    assert values["test.last.acc1"] == result.results["metrics"]["test.last"]["acc1"]
    assert {"prompt", "mapping"} <= set(values)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_is_told_what_metrics_say(tiny_timm, tiny_task, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    rows, log = defaultdict(list), wandb.Run.log

    def spy(self, values, step=None, **options):
        rows[step].append(values)
        log(self, values, step=step, **options)

    monkeypatch.setattr(wandb.Run, "log", spy)
    told(config(tiny_timm, tmp_path, ["wandb"]), tiny_task, lambda: rows)
    written = (tmp_path / "run" / "logs").glob("wandb/offline-run-*/files/media/images/*.png")
    assert {path.name.partition("_")[0] for path in written} == {"prompt", "mapping"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_trackio_is_told_what_metrics_say(tiny_timm, tiny_task, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    def report():
        rows = defaultdict(list)
        for row in SQLiteStorage.get_logs("clipvp", "run"):
            rows[row["step"]].append(row)
        return rows

    told(config(tiny_timm, tmp_path, ["trackio"]), tiny_task, report)
    assert len(list((tmp_path / "trackio").rglob("*.png"))) == 2


@pytest.mark.filterwarnings("ignore")
def test_a_tracker_that_does_not_start_is_one_line(tiny_timm, tiny_task, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    run = config(tiny_timm, tmp_path, ["tensorboard"])

    def refuse(self):
        raise RuntimeError("no key\nmore")

    monkeypatch.setattr(LOGGER_TYPE_TO_CLASS["tensorboard"], "start", refuse)
    with pytest.raises(UserError, match="train.report_to: tensorboard does not start: no key$"):
        fit(build_classifier(run, tiny_task), tiny_task, run)


def test_no_tracker_is_the_default(tiny_timm, tiny_task, tmp_path):
    run = config(tiny_timm, tmp_path, [])
    fit(build_classifier(run, tiny_task), tiny_task, run)
    assert not (tmp_path / "run" / "logs").exists()
