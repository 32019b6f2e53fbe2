"""Recipes, configs and methods by name: the same as their files, from verbs and recipes alike."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import write_image_folder
from test_model import made

from clipvp.cli.main import build_parser, main
from clipvp.config.parse import parse
from clipvp.config.values import to_dict
from clipvp.presets import FOLDER, configs, methods, recipes
from clipvp.registry import UserError
from clipvp.results.folder import read_results

CONFIGS = Path(__file__).parents[2] / "recipes" / "configs"


def read(*arguments: str) -> dict:
    return to_dict(parse("", arguments=arguments)[0])


def refused(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    lines = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and len(lines) == 1
    return lines[0]


def test_every_file_has_a_name():
    found = {*configs().values(), *methods().values()}
    assert found == set(CONFIGS.rglob("*.yaml")) and {"quickstart", "paper/resnet18"} <= configs().keys()
    assert recipes().keys() == {path.stem for path in CONFIGS.parent.glob("*.py")}


def test_names_are_read_as_their_files_are():
    files = [
        f"--config={CONFIGS / 'quickstart_ilm.yaml'}",
        f"--config={CONFIGS / 'methods' / 'blm_plus.yaml'}",
    ]
    expected = read(*files, "--mapping.refresh=3")
    assert expected["mapping"]["kind"] == "blm_plus" and expected["mapping"]["refresh"] == 3
    assert read("--config", "quickstart_ilm", "--method", "blm_plus", "--mapping.refresh", "3") == expected
    # The method is read after every config, and before what the command line says of single keys.
    assert read("--method=blm_plus", "--config=quickstart_ilm", "--mapping.refresh=3") == expected
    assert read("--config=quickstart_ilm", "--config=methods/blm_plus", "--mapping.refresh=3") == expected
    assert read("--config=quickstart_ilm", f"--method={CONFIGS}/methods/flm.yaml") == read(
        "--config=quickstart_ilm", "--method=flm"
    )


def test_a_file_comes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("quickstart").mkdir()  # a folder is no config
    assert read("--config=quickstart")["mapping"]["kind"] == "logistic"
    Path("quickstart").rmdir()
    Path("quickstart").write_text("seed: 31\n")
    assert read("--config=quickstart")["seed"] == 31


@pytest.mark.parametrize(
    "option, words",
    [
        ("--config=quickstrt", "no config 'quickstrt'; did you mean 'quickstart'?"),
        ("--method=blmplus", "no method 'blmplus'; did you mean 'blm_plus'?"),
        ("--config=recipes/configs/quickstart.yaml", "did you mean 'quickstart', which comes with"),
        ("--config=recipes/configs/methods/flm.yaml", "did you mean 'methods/flm', which comes with"),
        ("--config=mine/nowhere.yaml", "'mine/nowhere.yaml' cannot be read: No such file"),
        ("--config=.", "cannot be read: Is a directory"),
    ],
)
def test_unknown_names_are_one_line(option, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert words in refused(capsys, "train", option)


def test_dashes_and_underscores_are_the_same():
    assert read("--train.batch-size", "7") == read("--train.batch_size=7")
    renamed = read("--data.class-names.T-shirt", "a shirt")["data"]["class_names"]
    assert renamed == {"T-shirt": "a shirt"}
    parser = build_parser()
    usual = parser.parse_args(["predict", "p", "a.jpg", "--top_k", "2"])
    from clipvp.config.parse import with_underscores

    assert parser.parse_args(with_underscores(["predict", "p", "a.jpg", "--top-k", "2"])) == usual
    # Values and what comes after = stay as they are.
    kept = ["--source.name=timm:a-b", "a-b", "--", "-x", "--data.name", "my-folder/--x", "--a-b.jpg"]
    assert with_underscores(kept) == kept


def test_list_names_configs_and_methods(capsys):
    main(["list", "methods"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(methods())
    assert next(line for line in lines if line.startswith("flm ")).endswith("counted once before training.")
    main(["list", "configs"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(configs())


def test_print_config_shows_what_results_wherever_it_stands(capsys):
    shown = []
    for arguments in (["--print-config", "--seed=3"], ["--seed=3", "--print_config"]):
        with pytest.raises(SystemExit):
            main(["train", *arguments, "--config=quickstart", "--method=flm"])
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] and "seed: 3" in shown[0] and "never" in shown[0]


def test_a_verb_is_its_recipe(tiny_timm, tmp_path, monkeypatch, capsys):
    """``clipvp train`` and ``python recipes/train.py`` leave the same run, and so does a copy in another folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("clipvp.artifact.pictures.save_pictures", lambda *_: [])  # they take the longest
    write_image_folder(tmp_path / "images", {"train": 12, "val": 6, "test": 6}, 3)
    options = [f"--source.name={tiny_timm}", "--source.canvas=32", "--prompt.image-size=16"]
    options += ["--data.name=images", "--train.epochs=1", "--train.progress=false", "--method=flm"]
    main(["train", *options, "--output=by_verb"])
    main(["copy-recipe", "train", "copies"])
    assert "python copies/train.py" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["train.py", *options, "--output=by_copy"])
    runpy.run_path("copies/train.py", run_name="__main__")
    weights = [Path(run, "prompt", "model.safetensors").read_bytes() for run in ("by_verb", "by_copy")]
    assert weights[0] == weights[1]
    assert read_results("by_verb")["metrics"] == read_results("by_copy")["metrics"]
    assert read_results("by_verb")["config"]["mapping"]["refresh"] == "never"


def test_copied_recipes_and_configs_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["copy-recipe", "benchmark", "copies"])  # with the package and the recipe that it imports
    assert {path.name for path in Path("copies").iterdir()} == {"benchmark.py", "benchmark", "textbook.py"}
    done = subprocess.run([sys.executable, "copies/benchmark.py", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "Measure how fast" in done.stdout, done.stderr
    capsys.readouterr()
    main(["copy-recipe", "methods/zero_shot"])
    assert "--method zero_shot.yaml" in capsys.readouterr().out
    assert Path("zero_shot.yaml").read_bytes() == methods()["zero_shot"].read_bytes()
    main(["copy-recipe", "sweeps/auto_vp"])
    assert "clipvp sweep --config auto_vp.yaml" in capsys.readouterr().out
    main(["copy-recipe", "paper/resnet18"])
    assert read("--config=resnet18.yaml") == read("--config=paper/resnet18")
    assert "is there already" in refused(capsys, "copy-recipe", "paper/resnet18")
    assert "is a file; give a folder" in refused(capsys, "copy-recipe", "quickstart", "resnet18.yaml")
    assert "did you mean 'quickstart'" in refused(capsys, "copy-recipe", "quickstat")


def test_evaluate_takes_the_prompt_first(tiny_timm, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    made(tiny_timm).save_pretrained("prompt")
    write_image_folder(tmp_path / "task", {"test": 6}, 3)
    for label, name in enumerate(made(tiny_timm).class_names):
        Path(f"task/test/class{label}").rename(f"task/test/{name}")
    for recipe in (["prompt"], ["--prompt", "prompt"]):
        main(["evaluate", *recipe, "--data.name", "task", "--batch-size", "4"])
    first, second = capsys.readouterr().out.split("scored:")[1:]
    assert first.strip() == second.strip()


def test_a_recipe_leaves_this_process_as_it_was(capsys):
    before = list(sys.argv), list(sys.path)
    with pytest.raises(SystemExit):
        main(["benchmark", "--help"])
    assert (sys.argv, sys.path) == before and "usage: clipvp benchmark" in capsys.readouterr().out


def test_the_folder_of_the_checkout_is_used_here():
    assert CONFIGS.parent == FOLDER
    with pytest.raises(UserError, match="no config"):
        read("--config=nothing")
