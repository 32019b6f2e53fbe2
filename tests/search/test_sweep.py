"""Sweeps: nothing is lost, nothing runs twice, no test image is read, and wrong sweeps are one line."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import filelock
import pytest
import yaml
from conftest import coloured_images, small_config, small_task, write_image_folder

from clipvp import RunConfig, SweepConfig, Task, UserError, build_classifier, fit, load_task, sweep
from clipvp.cli.main import main
from clipvp.config.parse import parse
from clipvp.config.values import from_dict
from clipvp.search.space import Space
from clipvp.search.study import Study

RATE = {"optim.lr": {"low": 1e-3, "high": 1.0, "log": True}}


@pytest.fixture
def base(tiny_timm, tmp_path):
    """A function that makes the config of quick trials: a linear head on features."""

    def make(**sections):
        values = {"prompt": {"kind": "none"}, "mapping": {"kind": "linear"}, "train": {"epochs": 4}}
        values |= sections
        return small_config(tiny_timm, tmp_path / "sweep", **values)

    return make


def test_a_sweep_finds_the_rate_that_learns_and_writes_what_it_found(base, tiny_task, tmp_path, monkeypatch):
    monkeypatch.setattr("clipvp.search.importance._FEWEST", 4)  # whole trials; the space has four
    space = {"optim.lr": [1e-8, 0.1], "train.batch_size": [8, 16]}
    found = sweep(base(), SweepConfig(space=space, sampler="grid", pruner="none"), tiny_task)
    assert [row["params"] for row in found.trials] == [
        {"optim.lr": lr, "train.batch_size": size} for lr in (1e-8, 0.1) for size in (8, 16)
    ]
    assert found.best.optim.lr == 0.1 and found.val_acc1 > 0.8
    written = from_dict(yaml.safe_load((tmp_path / "sweep" / "best.yaml").read_text()))
    assert written.optim.lr == 0.1 and written.output == str(tmp_path / "sweep" / "best")
    # The best config trained again is the trial to the bit, and its test images are scored then.
    again = fit(build_classifier(written, tiny_task), tiny_task, written)
    assert again.results["metrics"]["val.best"]["acc1"] == found.val_acc1
    assert again.results["metrics"]["test.last"]["n"] == 25
    page = (tmp_path / "sweep" / "report.html").read_text()
    assert page.count("<img") == 3 and "train.batch_size" in page
    main(["report", str(tmp_path / "sweep"), "--output", str(tmp_path / "page.html")])
    assert (tmp_path / "page.html").read_text() == page


def test_no_trial_reads_a_test_image(base, tmp_path):
    folder = write_image_folder(tmp_path / "data", {"train": 24, "val": 12, "test": 6}, 3)
    for path in (folder / "test").rglob("*.png"):
        path.write_bytes(b"not an image")
    config = base(data={"name": str(folder), "cache_dir": str(tmp_path / "cache")}, train={"epochs": 2})
    found = sweep(config, SweepConfig(space=RATE, trials=2))
    for trial in range(2):
        results = json.loads((tmp_path / "sweep" / "trials" / f"000{trial}" / "results.json").read_text())
        assert results["num_test"] == 0 and results["metrics"]["test.last"]["acc1"] is None
        assert results["metrics"]["val.best"]["n"] == 12
    task = load_task(config.data, seed=1)
    with pytest.raises(UserError, match="test: 6 of 6 images cannot be read"):
        fit(build_classifier(found.best, task), task, found.best)


def test_successive_halving_ends_a_trial_by_the_validation_of_its_first_epoch(base, tiny_task):
    settings = SweepConfig(space={"mapping.train": [True, False]}, sampler="grid")
    found = sweep(base(), settings, tiny_task)
    assert [(row["state"], row["epochs"]) for row in found.trials] == [("complete", 4), ("pruned", 1)]
    assert (
        found.trials[1]["val_acc1"] == pytest.approx(1 / 3) and found.trials[0]["val_acc1"] == found.val_acc1
    )


def test_the_median_rule_ends_a_trial_below_the_median_of_five(base, tiny_task):
    """A head that does not train is as weak in the first five trials, which all run to their end."""
    space = {"train.batch_size": [8, 16, 32], "mapping.train": [True, False]}
    settings = SweepConfig(space=space, sampler="grid", pruner="median", min_epochs=2)
    found = sweep(base(), settings, tiny_task)
    assert [row["params"]["mapping.train"] for row in found.trials] == [True, False] * 3
    assert [(row["state"], row["epochs"]) for row in found.trials] == [("complete", 4)] * 5 + [("pruned", 2)]
    weak = [row["val_acc1"] for row in found.trials[1::2]]
    assert weak == pytest.approx([1 / 3] * 3) and found.val_acc1 > 0.5 and found.best.mapping.train


def test_more_trials_later_and_one_storage_for_one_space(base, tiny_task, tmp_path):
    def settings(trials, space=RATE):
        return SweepConfig(space=space, trials=trials, storage=f"sqlite:///{tmp_path}/trials.db")

    first = sweep(base(), settings(2), tiny_task).trials
    more = sweep(base(), settings(3), tiny_task).trials
    assert more[:2] == first and len(more) == 3
    other = {"optim.lr": {"low": 0.5, "high": 1.0}}
    with pytest.raises(UserError, match="another space .optim.lr: {'low': 0.5.*choose another --output"):
        sweep(base(), settings(3, other), tiny_task)
    with pytest.raises(UserError, match="another config .train.epochs: 5, not 4"):
        sweep(base(train={"epochs": 5}), settings(3), tiny_task)
    elsewhere = base()
    elsewhere.output = str(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="share one output folder"):
        sweep(elsewhere, settings(3), tiny_task)


def test_a_trial_that_fails_is_told_and_the_others_go_on(base, tiny_task):
    space = {"optim.lr": [0.1, 1e38]}  # the second turns infinite
    found = sweep(
        base(optim={"name": "sgd"}), SweepConfig(space=space, sampler="grid", pruner="none"), tiny_task
    )
    assert [row["state"] for row in found.trials] == ["complete", "failed"]
    assert "NaN or infinite" in found.trials[1]["error"]


SPACE = {
    "mapping.kind": ["linear", "top_k_mean"],
    "mapping.top_k": [1, 2],
    "mapping.start": ["zeros", "means"],
    "optim.groups.mapping.lr": [0.1, 0.2],
}


def test_a_trial_has_the_keys_of_its_choices_alone():
    grid = Space(SPACE, RunConfig()).grid()
    linear = [{"mapping.start": start} for start in ("zeros", "means")]
    top_k = [{"mapping.top_k": k} for k in (1, 2)]
    expected = [
        {"mapping.kind": kind, **own, "optim.groups.mapping.lr": lr}
        for kind, owns in (("linear", linear), ("top_k_mean", top_k))
        for own in owns
        for lr in (0.1, 0.2)
    ]
    assert sorted(map(str, (sorted(p.items()) for p in grid))) == sorted(
        map(str, (sorted(p.items()) for p in expected))
    )
    config = Space(SPACE, RunConfig()).config(grid[0], "runs/x")
    assert config.optim.group("mapping").lr == 0.1 and config.mapping.kind == "linear"


def test_a_grid_has_the_numbers_that_are_meant():
    def grid(**given):
        return [row["optim.weight_decay"] for row in Space({"optim.weight_decay": given}, RunConfig()).grid()]

    assert grid(low=0.1, high=0.3, step=0.1) == [0.1, 0.2, 0.3]
    assert grid(low=0.0, high=0.35, step=0.1) == [0.0, 0.1, 0.2, 0.3]
    whole = Space({"train.epochs": {"low": 2, "high": 7, "step": 2}}, RunConfig()).grid()
    assert whole == [{"train.epochs": epochs} for epochs in (2, 4, 6)]


def test_workers_on_a_file_system_without_locks_are_refused_with_the_reason(tmp_path, monkeypatch):
    def no_lock(self, *given, **options):
        raise NotImplementedError

    monkeypatch.setattr(filelock.FileLock, "acquire", no_lock)
    base = RunConfig(output=str(tmp_path / "sweep"))
    with pytest.raises(UserError, match="does not have: the file system has no locks"):
        Study(SweepConfig(space=RATE), Space(RATE, base), base, tmp_path / "sweep")


@pytest.mark.parametrize("sampler", ["grid", "random"])
def test_a_trial_whose_worker_was_killed_before_it_began_is_taken_up(sampler, tmp_path):
    space = {"optim.lr": {"low": 0.1, "high": 0.3, "step": 0.1}, "train.batch_size": [8, 16]}
    params = {}
    for name in ("whole", "killed"):
        base = RunConfig(output=str(tmp_path / name))
        study = Study(
            SweepConfig(space=space, sampler=sampler, trials=4), Space(space, base), base, tmp_path / name
        )
        if name == "killed" and sampler == "grid":
            study.study.enqueue_trial(study.space.stored(study.grid[0]))
        elif name == "killed":
            study.study.ask()
        params[name] = []
        while claimed := study.claim():
            params[name].append(claimed[1])
            study.study.tell(claimed[0], 0.5)
            study.leave(claimed[0].number)
        assert not study.unfinished()
    assert params["killed"] == params["whole"] and len(params["whole"]) == 4


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({}, "sweep.space is empty"),
        ({"optm.lr": [1]}, "unknown key 'optm.lr'; did you mean 'optim'"),
        ({"optim.lrr": [1]}, "did you mean 'optim.lr'"),
        ({"mapping.top_k": [1]}, "top_k is a key of blm_plus.*, top_k_mean"),
        ({"optim": [1]}, "is a section"),
        ({"data.shots": [1, 2]}, "all trials validate on the same images"),
        ({"train.protocol": ["val", "paper"]}, "chosen by validation"),
        ({"optim.lr": 0.1}, "give a list of values, or {low"),
        ({"optim.lr": {"low": 1, "high": 0.1}}, "is no range"),
        ({"optim.lr": {"low": 0, "high": 1, "log": True}}, "is no range"),
        ({"optim.lr": {"low": "a", "high": 1}}, "'a' is not a number"),
        ({"optim.lr": {"low": 0.1, "high": 1, "steps": 1}}, "did you mean 'step'"),
        ({"optim.lr": {"low": -1, "high": 1}}, "optim.lr: -1.* is not allowed"),
        ({"train.epochs": {"low": 1, "high": 2.5}}, "give whole numbers"),
        ({"mapping.kind": {"low": 1, "high": 2}}, "takes no numbers"),
        ({"mapping.kind": ["linear", "lineer"]}, "did you mean 'linear'"),
        ({"optim.lr": [0.1, 0.1]}, "names a value twice"),
    ],
)
def test_a_wrong_space_is_one_line(space, said):
    with pytest.raises(UserError, match=said) as error:
        Space(space, RunConfig())
    assert "\n" not in str(error.value)


def test_other_wrong_sweeps_are_one_line(base, tiny_task, capsys):
    with pytest.raises(UserError, match="optim.lr has no step, which sweep.sampler: grid needs"):
        sweep(base(), SweepConfig(space=RATE, sampler="grid"), tiny_task)
    with pytest.raises(UserError, match="train.protocol: paper has no validation"):
        sweep(base(train={"protocol": "paper"}), SweepConfig(space=RATE), tiny_task)
    with pytest.raises(UserError, match="has no validation images"):
        images = coloured_images(9, 3)
        alone = Task.from_dataset(images, images, class_names=list("abc"), protocol="paper")
        sweep(base(), SweepConfig(space=RATE), alone)
    with pytest.raises(SystemExit):
        main(["sweep", "--sweep.sampler", "tpi", "--sweep.space", "{optim.lr: [1]}"])
    assert "did you mean 'tpe'" in capsys.readouterr().err


def test_the_ready_files_are_read():
    sweeps = Path(__file__).parents[2] / "recipes" / "configs" / "sweeps"
    from clipvp.search.space import SweepRunConfig

    for file in sweeps.glob("*.yaml"):
        config, _ = parse("a test", SweepRunConfig, ["--config", str(file)])
        assert Space(config.sweep.space, config.base()).axes


WORKER = """
import sys, time
from conftest import small_config, small_task
from clipvp import SweepConfig, sweep
from clipvp.search import sweep as module

report = module.after_epoch
def slowly(trial, epochs, history):
    time.sleep(0.05)
    print(trial.number, len(history), flush=True)
    return report(trial, epochs, history)
module.after_epoch = slowly
sections = {"prompt": {"kind": "full"}, "mapping": {"kind": "linear"}, "train": {"epochs": 4, "eval_every": 1}}
config = small_config(sys.argv[1], sys.argv[2], **sections)
space = {"optim.lr": {"low": 1e-3, "high": 1.0, "log": True}}
sweep(config, SweepConfig(space=space, trials=12, sampler="random", pruner="none"), small_task())
"""


def worker(source: str, output: Path) -> subprocess.Popen:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parents[1]), *sys.path])),
    }
    command = [sys.executable, "-c", WORKER, source, str(output)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


@pytest.mark.slow
def test_two_workers_one_killed(tiny_timm, tmp_path):
    output = tmp_path / "sweep"
    killed, stays = worker(tiny_timm, output), worker(tiny_timm, output)
    for line in killed.stdout:  # in the middle of its trial
        number, epochs = map(int, line.split())
        if epochs == 2:
            killed.send_signal(signal.SIGKILL)
            break
    killed.communicate(timeout=60)
    said, error = stays.communicate(timeout=400)
    assert stays.returncode == 0, error[-3000:]
    found = json.loads((output / "sweep.json").read_text())
    assert [row["state"] for row in found["trials"]] == ["complete"] * 12
    assert found["trials"][number]["begun"] == 2 and sum(row["begun"] for row in found["trials"]) == 13
    for row in found["trials"]:
        lines = (output / "trials" / f"{row['number']:04d}" / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4] and row["epochs"] == 4
    # Of the killed trial, what was in its checkpoint did not run again.
    went_on = [epochs for n, epochs in (map(int, line.split()) for line in said.splitlines()) if n == number]
    assert went_on[0] in (1, 2) and went_on[1:] == list(range(went_on[0] + 1, 5))
    alone = sweep(
        small_config(
            tiny_timm,
            tmp_path / "alone",
            prompt={"kind": "full"},
            mapping={"kind": "linear"},
            train={"epochs": 4, "eval_every": 1},
        ),
        SweepConfig(space=RATE, trials=number + 1, sampler="random", pruner="none"),
        small_task(),
    )
    assert alone.trials[number]["val_acc1"] == found["trials"][number]["val_acc1"]
    assert alone.trials[number]["params"] == found["trials"][number]["params"]
