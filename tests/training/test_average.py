"""The average of the last epochs: what it is, that it is scored and saved, and that a stop changes nothing."""

from pathlib import Path

import pytest
import torch
from conftest import left_by, trained
from test_resume import stop_after

from clipvp import PromptedClassifier, UserError, evaluate
from clipvp.config.schema import TrainConfig
from clipvp.training.interrupt import Interrupted
from clipvp.training.step import Trainer


def test_the_average_is_the_mean_of_the_last_epochs(config, tiny_task, monkeypatch):
    states, end_epoch = [], Trainer.end_epoch

    def noted(self):
        states.append({name: value.clone() for name, value in self.classifier.trained_state().items()})
        end_epoch(self)

    monkeypatch.setattr(Trainer, "end_epoch", noted)
    run = config(mapping={"kind": "linear"}, optim={"lr": 0.1}, train={"epochs": 4, "average": 3})
    classifier, result = trained(run, tiny_task)
    folder = Path(run.output)
    average = PromptedClassifier.from_pretrained(folder / "prompt_average")
    for name, value in average.trained_state().items():
        torch.testing.assert_close(value, torch.stack([state[name] for state in states[1:]]).mean(0))
    assert not torch.equal(average.prompt.delta, classifier.prompt.delta)
    assert evaluate(average, tiny_task).acc1 == result.results["metrics"]["test.average"]["acc1"]
    kept = PromptedClassifier.from_pretrained(folder / "prompt").trained_state()
    best = result.results["best_epoch"] - 1
    assert all(torch.equal(value, states[best][name]) for name, value in kept.items())
    assert average.results["saved_prompt"] == "average"


def test_stopped_and_resumed_the_average_is_the_same(config, tiny_task, tmp_path, monkeypatch):
    settings = {"train": {"epochs": 3, "average": 2}}
    trained(config(output=str(tmp_path / "whole"), **settings), tiny_task)
    for step in (3, 7, 10, 12):
        output = tmp_path / f"stopped-{step}"
        with monkeypatch.context() as patch:
            stop_after(patch, step)
            with pytest.raises(Interrupted):
                trained(config(output=str(output), **settings), tiny_task)
        trained(config(output=str(output), resume="auto", **settings), tiny_task)
        assert left_by(output) == left_by(tmp_path / "whole")
        average = Path("prompt_average", "model.safetensors")
        assert (output / average).read_bytes() == (tmp_path / "whole" / average).read_bytes()


def test_without_it_there_is_no_average(config, tiny_task):
    run = config()
    _, result = trained(run, tiny_task)
    assert "test.average" not in result.results["metrics"]
    assert not Path(run.output, "prompt_average").exists()


@pytest.mark.parametrize("more, reason", [({"patience": 2}, "patience"), ({"epochs": 2}, "epochs: 2")])
def test_an_average_of_unknown_epochs_is_refused(more, reason):
    with pytest.raises(UserError, match=f"train.average: 3 does not go with train.{reason}"):
        TrainConfig(**{"epochs": 9, "average": 3, **more})
