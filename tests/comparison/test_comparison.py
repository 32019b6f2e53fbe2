"""A comparison runs each run once, whoever runs it, within its budget, and leaves tables, pictures and a prompt."""

import json
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from conftest import small_config, write_image_folder

import clipvp.comparison.run
from clipvp import PromptedClassifier, RunConfig, compare
from clipvp.comparison import prepare
from clipvp.comparison.compare import Comparison
from clipvp.comparison.measure import Cost, Estimate
from clipvp.comparison.methods import DEFAULT_METHODS
from clipvp.comparison.plan import make_plan
from clipvp.comparison.run import Outcome, in_order, run_jobs
from clipvp.registry import UserError
from clipvp.results import lock
from clipvp.results.folder import read_results

METHODS = ["class_means", "linear_probe"]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_image_folder(tmp_path_factory.mktemp("images"), {"train": 60, "test": 30}, 3)


@pytest.fixture
def config(tiny_timm, images, tmp_path):
    return small_config(
        tiny_timm,
        tmp_path / "grid",
        data={"name": str(images), "shots": 4},
        train={"epochs": 2, "progress": False},
    )


@pytest.fixture
def ran(monkeypatch) -> list[str]:
    """The folders of the runs that were trained."""
    found, fit = [], clipvp.comparison.run.fit

    def counted(classifier, task, run, accelerator):
        found.append(str(Path(run.output).relative_to(Path(run.output).parents[1])))
        return fit(classifier, task, run, accelerator)

    monkeypatch.setattr(clipvp.comparison.run, "fit", counted)
    return found


def test_a_comparison_from_a_folder_to_the_picked_prompt(config, ran, images, tmp_path):
    lines: list[str] = []
    methods = [*METHODS, "blm"]
    found = compare(config=config, methods=methods, seeds=[0, 1], say=lines.append)
    output = tmp_path / "grid"
    assert sorted(ran) == sorted(f"{method}/seed{seed}" for method in methods for seed in (0, 1))
    assert ran[-2:] == ["blm/seed0", "blm/seed1"]  # a prompt trains last
    text = "\n".join(lines)
    assert "6 runs, about" in text and "== blm, seed 1: about" in text
    rows = json.loads((output / "compare.json").read_text())
    assert rows == found.rows and [row["cell"] for row in rows] == methods
    for row in rows:
        runs = [read_results(output / row["cell"] / f"seed{seed}") for seed in (0, 1)]
        assert row["test.best_val"]["values"] == [run["metrics"]["test.best_val"]["acc1"] for run in runs]
        assert len({run["split_hash"] for run in runs}) == 2  # each seed draws its own shots
    validated = {row["cell"]: row["val.best"]["mean"] for row in rows}
    cheap = {name: score for name, score in validated.items() if name != "blm"}
    assert found.pick in [name for name, score in cheap.items() if score == max(cheap.values())] + ["blm"]
    picked = json.loads((output / "pick.json").read_text())["picks"][0]
    assert picked["pick"] == found.pick and picked["sentence"].startswith(f"use {found.pick}: ")
    best = PromptedClassifier.from_pretrained(output / "best")
    one = next((images / "test").rglob("*.png"))
    assert best.predict([one]) == PromptedClassifier.from_pretrained(
        output / picked["run"] / "prompt"
    ).predict([one])
    for name in ("compare.md", "compare.csv", "compare.tex", "plots/numbers.png", "plots/seconds.png"):
        assert (output / name).stat().st_size > 100
    assert found.verdicts[0].sentence in str(found) and "<table" in found._repr_html_()

    before = (output / "compare.md").read_text()
    again = compare(config=config, methods=methods, seeds=[0, 1], say=lines.append)
    assert len(ran) == 6 and "nothing is left to run (6 finished before)" in lines
    assert (output / "compare.md").read_text() == before and again.rows == found.rows


def jobs_of(config, methods, seeds, output) -> list:
    plan = make_plan(config, methods=methods, tasks=[], sources=[], vary={}, seeds=seeds, output=output)
    return [job for row in plan.jobs.values() for job in row]


def test_a_run_that_another_process_holds_waits_and_is_taken_over(config, ran, tmp_path):
    jobs = jobs_of(config, METHODS, [0, 1], tmp_path / "grid")
    jobs[0].folder.mkdir(parents=True)
    # A lock that this process did not take by ``lock.take`` is one of another process.
    foreign = lock.FileLock(jobs[0].folder.resolve() / lock.LOCK, timeout=0, thread_local=False)
    foreign.acquire()
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        if line.startswith("waiting for 1 run"):  # the other process is killed
            foreign.release()

    outcome, costs = Outcome(), {job.key: Cost(1.0, 1.0, 1.0, "a", "b") for job in jobs}
    run_jobs(jobs, costs, outcome, Accelerator(), say=say)
    assert ran == ["class_means/seed1", "linear_probe/seed0", "linear_probe/seed1", "class_means/seed0"]
    assert len(outcome.results) == 4 and sum(line.startswith("waiting") for line in lines) == 1


def test_a_run_that_another_process_finished_is_read(config, ran, tmp_path):
    [job] = jobs_of(config, METHODS[:1], [0], tmp_path / "grid")
    compare(config=config, methods=METHODS[0], seeds=[0], say=lambda line: None)  # one name is a list of one
    outcome = Outcome()
    run_jobs([job], {job.key: Cost(1.0)}, outcome, Accelerator())
    assert outcome.results[job.key]["seed"] == 0 and len(ran) == 1


def test_a_method_that_does_not_fit_is_named_before_anything_runs(config, ran, tmp_path):
    with pytest.raises(UserError, match="1 of 2 do not fit and nothing was run; zs_lp: .*closed label set"):
        compare(config=config, methods=["class_means", "zs_lp"], say=lambda line: None)
    assert ran == [] and not list(tmp_path.rglob("results.json"))


def test_a_budget_that_is_too_small_is_told_before_anything_runs(config, ran):
    with pytest.raises(UserError, match="--budget 0.0001: the shortest run takes about"):
        compare(config=config, methods=METHODS, budget=0.0001, say=lambda line: None)
    with pytest.raises(UserError, match="--budget: 0 is not allowed"):
        compare(config=config, methods=METHODS, budget=0)
    assert ran == []


def test_runs_that_do_not_fit_into_the_budget_are_left_out_and_taken_up_again(config, ran, monkeypatch):
    measured = prepare.measure

    def dear(run, task, accelerator):
        cost = measured(run, task, accelerator)
        return replace(cost, run=3600.0) if run.mapping.kind == "logistic" else replace(cost, run=0.1)

    monkeypatch.setattr(prepare, "measure", dear)
    found = compare(config=config, methods=METHODS, seeds=[0, 1], budget=5, say=lambda line: None)
    assert ran == ["class_means/seed0", "class_means/seed1"] and found.pick == "class_means"
    assert found.left_out == ["linear_probe, seed 0", "linear_probe, seed 1"]
    assert "2 runs did not fit into the budget (linear_probe" in found.next[0]
    monkeypatch.setattr(prepare, "measure", measured)
    whole = compare(config=config, methods=METHODS, seeds=[0, 1], say=lambda line: None)
    assert len(ran) == 4 and whole.left_out == []


def test_methods_that_are_chosen_fit_the_source_and_take_ten_minutes(config, ran, monkeypatch):
    """Those that take longer are left out; those for a CLIP do not fit a classifier."""
    monkeypatch.setattr(
        prepare,
        "measure",
        lambda run, *_: Cost(1.0 if (run.prompt.kind, run.mapping.kind) == ("none", "linear") else 6000.0),
    )
    fit = ("class_means", "linear_probe", "blm_plus", "prompt_linear")
    unfit = [name for name in DEFAULT_METHODS if name not in fit]
    lines: list[str] = []
    found = compare(config=config, seeds=[0], say=lines.append)
    assert f"left out, since they do not fit: {', '.join(unfit)}" in lines
    assert sum("the budget is 10 minutes" in line for line in lines) == 1
    assert ran == ["class_means/seed0"] and found.pick == "class_means"
    assert found.left_out == [f"{name}, seed 0" for name in fit[1:]]
    ran.clear()
    compare(config=config, methods=["linear_probe"], seeds=[0], say=lines.append)
    assert ran == ["linear_probe/seed0"] and "minutes" not in lines[-2]  # named methods have no limit


def test_a_run_that_fails_does_not_end_the_others(config, monkeypatch):
    fit = clipvp.comparison.run.fit

    def failing(classifier, task, run, accelerator):
        if run.seed == 1:
            raise UserError("the loss turned NaN")
        return fit(classifier, task, run, accelerator)

    monkeypatch.setattr(clipvp.comparison.run, "fit", failing)
    found = compare(config=config, methods=METHODS[:1], seeds=[0, 1], say=lambda line: None)
    assert found.failed == {"class_means, seed 1": "the loss turned NaN"} and found.rows[0]["seeds"] == [0]
    with pytest.raises(UserError, match="every run failed, the first: the loss"):
        compare(
            config=replace(config, output=config.output + "2"),
            methods=METHODS[:1],
            seeds=[1],
            say=lambda line: None,
        )


def test_a_run_without_memory_does_not_end_the_others(config, ran, monkeypatch):
    fit, measure = clipvp.comparison.run.fit, prepare.measure
    errors = {0: torch.cuda.OutOfMemoryError("CUDA out of memory.\nTried"), 1: MemoryError()}
    held = []

    def failing(classifier, task, run, accelerator):
        if run.mapping.kind == "blm" and run.seed in errors:
            held.append(weakref.ref(classifier))
            raise errors[run.seed]
        return fit(classifier, task, run, accelerator)

    def short(run, task, accelerator):
        if run.mapping.kind == "blm_plus":
            torch.empty(1 << 55)
        return measure(run, task, accelerator)

    monkeypatch.setattr(clipvp.comparison.run, "fit", failing)
    monkeypatch.setattr(prepare, "measure", short)
    methods = ["class_means", "blm", "blm_plus"]
    found = compare(config=config, methods=methods, seeds=[0, 1], say=lambda line: None)
    assert found.pick == "class_means" and [row["cell"] for row in found.rows] == ["class_means"]
    assert json.loads((found.output / "pick.json").read_text())["failed"] == found.failed
    assert list(found.failed) == [f"{name}, seed {seed}" for name in ("blm_plus", "blm") for seed in (0, 1)]
    starts = [
        reason.startswith("out of memory; a smaller train.batch_size") for reason in found.failed.values()
    ]
    assert all(starts) and found.failed["blm, seed 0"].endswith("(CUDA out of memory. Tried)")
    assert "can't allocate memory" in found.failed["blm_plus, seed 0"]
    assert [reference() for reference in held] == [None, None]  # the next run has the memory

    def wrong(classifier, task, run, accelerator):
        raise RuntimeError("a defect")

    monkeypatch.setattr(clipvp.comparison.run, "fit", wrong)
    with pytest.raises(RuntimeError, match="a defect"):
        compare(config=config, methods=["blm"], seeds=[0], say=lambda line: None)


def test_several_processes_end_where_one_has_no_memory(config):
    """The others wait for it in the middle of the run."""
    several = SimpleNamespace(num_processes=2)
    assert prepare.reason_to_go_on(UserError("on all processes"), several) == "on all processes"
    with pytest.raises(MemoryError):
        prepare.reason_to_go_on(MemoryError(), several)


def _with_other_images(run: Path) -> None:
    """Let a finished run say that it learned from other images."""
    results = run / "results.json"
    results.write_text(results.read_text().replace(read_results(run)["split_hash"], "0123456789abcdef"))


def test_data_of_another_seed_that_changed_is_refused_before_anything_runs(config, ran):
    compare(config=config, methods=METHODS[:1], seeds=[1], say=lambda line: None)
    _with_other_images(Path(config.output, "class_means", "seed1"))
    with pytest.raises(UserError, match="class_means/seed1 and .*linear_probe/seed1 cannot be in one table"):
        compare(config=config, methods=METHODS, seeds=[0, 1], say=lambda line: None)
    assert ran == ["class_means/seed1"]


def test_more_seeds_on_an_enlarged_test_set_are_refused_before_anything_runs(config, ran, tmp_path):
    folder = write_image_folder(tmp_path / "images", {"train": 60, "test": 30}, 3)
    config.data.name = str(folder)
    compare(config=config, methods=METHODS[:1], seeds=[0], say=lambda line: None)
    write_image_folder(folder, {"train": 60, "test": 33}, 3)
    with pytest.raises(UserError, match="class_means/seed0 and .*class_means/seed1 .*other test images"):
        compare(config=config, methods=METHODS[:1], seeds=[0, 1], say=lambda line: None)
    assert ran == ["class_means/seed0"]


def test_data_that_changed_between_runs_is_refused_before_anything_runs(config, ran):
    compare(config=config, methods=METHODS[:1], seeds=[0], say=lambda line: None)
    _with_other_images(Path(config.output, "class_means", "seed0"))
    with pytest.raises(UserError, match="cannot be in one table.*0123456789abcdef.*the data has changed"):
        compare(config=config, methods=METHODS, seeds=[0], say=lambda line: None)
    assert ran == ["class_means/seed0"]


def test_a_method_with_a_protocol_of_its_own_is_in_the_table_and_not_in_the_pick(config, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("mapping: {kind: linear}\nprompt: {kind: none}\ntrain: {protocol: paper}")
    found = compare(config=config, methods=[str(own), METHODS[0]], seeds=[0], say=lambda line: None)
    assert [verdict.pick for verdict in found.verdicts] == [None, METHODS[0]] and len(found.rows) == 2
    assert list(found.best) == ["train.protocol=val"] and found.pick == METHODS[0]
    assert (tmp_path / "grid" / "best" / "train.protocol=val").is_dir()


def test_processes_that_end_together_write_one_after_the_other(tmp_path, monkeypatch):
    module, output = sys.modules[compare.__module__], tmp_path / "grid"
    output.mkdir()
    (output / "best").mkdir()  # of an earlier pick
    foreign = lock.FileLock(output.resolve() / lock.LOCK, timeout=0, thread_local=False)
    foreign.acquire()
    looks = []

    def end_the_other(seconds: float) -> None:
        looks.append([path.name for path in output.iterdir() if path.name != lock.LOCK])
        foreign.release()

    monkeypatch.setattr(module.time, "sleep", end_the_other)
    module.write_comparison(Comparison([], [], output=output), RunConfig(output=str(output)))
    assert looks == [["best"]] and (output / "compare.json").exists()
    assert not (output / "best").exists() and not (output / lock.LOCK).exists()


# Order and estimates


def test_what_is_on_features_runs_first_then_seed_by_seed(config, tmp_path):
    jobs = jobs_of(config, ["blm", *METHODS], [0, 1], tmp_path)
    costs = {job.key: Cost(5.0 if "means" in job.key else 9.0, 1, 1, "a", "b") for job in jobs}
    costs |= {job.key: Cost(1.0) for job in jobs if job.cell.name == "blm"}
    order = [f"{job.cell.name} {job.config.seed}" for job in in_order(jobs, costs)]
    assert order == [
        "class_means 0", "linear_probe 0", "class_means 1", "linear_probe 1", "blm 0", "blm 1"
    ]  # fmt: skip


def test_features_are_paid_for_once_and_estimates_learn():
    estimate, cost = Estimate(), Cost(10.0, 4.0, 2.0, "train", "test")
    assert estimate.total([(cost, 0), (cost, 0), (cost, 1)]) == (10 + 6) + 10 + (10 + 4)
    estimate.done(cost, 0, took=32.0)  # twice as long
    assert estimate.seconds(cost, 0) == 20 and estimate.seconds(cost, 1) == 28
    assert estimate.seconds(Cost(7.0), 0) == 7
