"""Early stopping: by validation, never by the test set."""

import dataclasses

import pytest
from conftest import trained

from clipvp import UserError
from clipvp.training.step import Trainer


def test_patience_stops_after_epochs_without_a_better_validation(config, tiny_task, tmp_path, monkeypatch):
    scores = iter([0.3, 0.5, 0.4, 0.5, 0.4, 0.9])
    score = Trainer.score

    def scripted(self, split, phase):
        result = score(self, split, phase)
        return dataclasses.replace(result, acc1=next(scores)) if split == "val" else result

    monkeypatch.setattr(Trainer, "score", scripted)
    run = config(train={"epochs": 6, "patience": 2})
    _, result = trained(run, tiny_task)
    assert len(result.history) == 4 and result.results["best_epoch"] == 2  # 0.5 again is not better
    assert [row["val_acc1"] for row in result.history] == [0.3, 0.5, 0.4, 0.5]
    run.resume = "auto"
    _, again = trained(run, tiny_task)  # a finished run that is resumed stays as it is
    assert len(again.history) == 4 and again.results["metrics"] == result.results["metrics"]


def test_patience_without_validation_is_refused(config, tiny_task):
    run = config(train={"patience": 2, "protocol": "paper"})
    with pytest.raises(UserError, match="train.patience needs validation images"):
        trained(run, tiny_task)
