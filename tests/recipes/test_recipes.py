"""The recipes from their command line to what they leave: small runs, in this process."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import write_image_folder

import clipvp
from clipvp import PromptedClassifier
from clipvp.results.folder import read_results

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Return a function that runs a recipe with dotted keys and gives what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(recipe: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [f"{recipe}.py", *map(str, arguments)])
        capsys.readouterr()
        runpy.run_path(str(RECIPES / f"{recipe}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.fixture
def no_pictures(monkeypatch):
    """Leave out the pictures, which cost more time than such small runs."""
    import clipvp.artifact.pictures

    monkeypatch.setattr(clipvp.artifact.pictures, "save_pictures", lambda *_: [])


@pytest.fixture
def options(tiny_timm, tmp_path) -> list[str]:
    folder = write_image_folder(tmp_path / "images", {"train": 24, "val": 9, "test": 15}, 3)
    values = {
        "source.name": tiny_timm,
        "source.canvas": 32,
        "data.name": folder,
        "train.epochs": 2,
        "train.batch_size": 8,
        "train.progress": "false",
    }
    return [f"--{key}={value}" for key, value in values.items()]


def test_train_then_evaluate_give_the_same_scores(run, options, tmp_path):
    printed = run("train", *options, "--prompt.image_size=16", "--output=run")
    results = read_results("run")
    for name in ("class0", "class1", "class2", "test, last epoch", "validation, best", "run  run"):
        assert name in printed
    for name in ("config.yaml", "metrics.jsonl", "results.json", "prompt/config.json", "plots/curves.png"):
        assert (tmp_path / "run" / name).is_file()
    best = results["metrics"]["test.best_val"]
    evaluated = ["--data.name=images", "--batch_size=4", "--json=scores.json"]
    printed = run("evaluate", "--prompt=run/prompt", *evaluated)
    scores = json.loads(Path("scores.json").read_text())
    assert {key: scores[key] for key in best} == best and f"{100 * best['acc1']:.1f} %" in printed
    assert "class2" in printed and "15" in printed
    assert PromptedClassifier.from_pretrained("run/prompt").class_names == ["class0", "class1", "class2"]


def test_the_written_config_is_a_command_line(run, options, no_pictures):
    run("train", *options, "--prompt.image_size=16", "--seed=3", "--output=first")
    run("train", "--config=first/config.yaml", "--output=second")
    first, second = read_results("first"), read_results("second")
    for key in ("metrics", "mapping_table", "split_hash", "seed", "prompt"):
        assert first[key] == second[key]
    weights = "prompt/model.safetensors"
    assert Path("first", weights).read_bytes() == Path("second", weights).read_bytes()


@pytest.mark.parametrize("recipe, kind", [("finetune", "full"), ("lora", "lora")])
def test_recipes_whose_source_trains_leave_results_of_the_same_shape(run, options, no_pictures, recipe, kind):
    printed = run(recipe, *options, "--output=run")
    results = read_results("run")
    assert results["method"] == "trained weights" and results["weights"]["kind"] == kind
    assert results["num_train"] == 24 and results["num_classes"] == 3
    assert set(results["metrics"]) == {"test.last", "test.best_val", "val.best"}
    assert results["metrics"]["test.last"]["n"] == 15
    assert "source label" not in printed and "test, last epoch" in printed
    assert PromptedClassifier.from_pretrained("run/prompt").class_names == ["class0", "class1", "class2"]


def test_a_second_run_into_the_same_folder_is_refused(run, options, no_pictures, capsys):
    for recipe in ("finetune", "train"):
        run(recipe, *options, f"--output={recipe}")
        before = Path(recipe, "results.json").read_bytes()
        with pytest.raises(SystemExit) as end:
            run(recipe, *options, f"--output={recipe}")
        assert end.value.code == 2 and "holds a run already" in capsys.readouterr().err
        assert Path(recipe, "results.json").read_bytes() == before


def test_a_comparison_goes_on_where_it_stopped(run, options, monkeypatch):
    arguments = [*options, "--prompt.image_size=16", "--methods=[rlm,ilm]", "--seeds=[0,1]", "--output=grid"]
    printed = run("compare", *arguments)
    table, rows = Path("grid/compare.md").read_text(), json.loads(Path("grid/compare.json").read_text())
    assert table.strip() in printed and [row["cell"] for row in rows] == ["rlm", "ilm"]
    for row in rows:
        found = [read_results(f"grid/{row['cell']}/seed{seed}") for seed in (0, 1)]
        assert [results["seed"] for results in found] == [0, 1]
        accuracies = [results["metrics"]["test.best_val"]["acc1"] for results in found]
        assert row["test.best_val"]["mean"] == pytest.approx(np.mean(accuracies))
        assert row["test.best_val"]["std"] == pytest.approx(np.std(accuracies, ddof=1))
        assert f"{100 * np.mean(accuracies):.1f} ± {100 * np.std(accuracies, ddof=1):.1f}" in table

    ran, fit = [], clipvp.training.fit.fit
    monkeypatch.setattr(clipvp.comparison.run, "fit", lambda *a: ran.append(a[2].output) or fit(*a))
    run("compare", *arguments)
    assert ran == [] and Path("grid/compare.md").read_text() == table  # nothing is left to run

    Path("grid/ilm/seed1/results.json").unlink()  # as if it had been stopped there
    run("compare", *arguments)
    assert ran == [str(Path("grid/ilm/seed1"))]
    again = json.loads(Path("grid/compare.json").read_text())
    for row, before in zip(again, rows, strict=True):
        untold = {"seconds": 0, "train_seconds": 0}
        assert {**row, **untold} == {**before, **untold}


def test_a_comparison_of_values_names_its_cells(run, options):
    values = "{prompt.image_size: [8, 16]}"
    run("compare", *options, f"--vary={values}", "--seeds=[0]", "--output=grid", "--train.epochs=1")
    rows = json.loads(Path("grid/compare.json").read_text())
    assert [row["cell"] for row in rows] == ["prompt.image_size=8", "prompt.image_size=16"]
    sizes = [read_results(f"grid/{row['cell']}/seed0")["prompt"]["image_size"] for row in rows]
    assert sizes == [[8, 8], [16, 16]] and all(row["test.best_val"]["std"] is None for row in rows)


def test_a_comparison_into_the_folder_of_another_is_refused(run, options, capsys):
    arguments = [*options, "--methods=[rlm]", "--seeds=[0]", "--output=grid", "--train.epochs=1"]
    run("compare", *arguments)
    with pytest.raises(SystemExit):
        run("compare", *arguments, "--optim.lr=0.5")
    assert "run of another config (optim.lr" in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_model_learns_real_digits(run, no_pictures):
    """A few images of real digits, read by a real ImageNet classifier: well above one in ten."""
    data = ["--data.name=digits", "--data.max_train=200", "--data.max_test=100"]
    rest = ["--source.canvas=64", "--train.epochs=4", "--train.batch_size=50", "--optim.lr=0.05"]
    run("train", *data, *rest, "--train.progress=false", "--output=run")
    assert read_results("run")["metrics"]["test.best_val"]["acc1"] > 0.2
