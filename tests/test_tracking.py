"""Trackers are told what metrics.jsonl says; none by default, and one that is not there is told."""

import json

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from clipvp import RunConfig, UserError, build_classifier, fit
from clipvp.config import TRACKERS, from_dict
from clipvp.tracking import check_trackers


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
    monkeypatch.setattr("clipvp.tracking.get_available_trackers", lambda: [])
    with pytest.raises(UserError, match="wandb is not installed; run `pip install wandb`"):
        check_trackers(["wandb"])


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_holds_what_metrics_say(tiny_timm, tiny_task, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = config(tiny_timm, tmp_path, ["tensorboard"])
    result = fit(build_classifier(run, tiny_task.class_names), tiny_task, run)
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


def test_no_tracker_is_the_default(tiny_timm, tiny_task, tmp_path):
    run = config(tiny_timm, tmp_path, [])
    fit(build_classifier(run, tiny_task.class_names), tiny_task, run)
    assert not (tmp_path / "run" / "logs").exists()
