"""A first run from nothing but a folder, and what ``clipvp doctor`` finds."""

import shlex
import sys
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from conftest import photo, write_image_folder

from clipvp import RunConfig, load_task
from clipvp.cli import doctor
from clipvp.cli.first_use import first_settings, is_first_use
from clipvp.cli.main import main
from clipvp.config.parse import given_keys
from clipvp.config.schema import DataConfig
from clipvp.presets import methods
from clipvp.results.folder import read_results


@pytest.mark.parametrize(
    "command, first",
    [
        ("--data.name f", True),
        ("--data.name=f --data.max-train 9 --seed 3 --output o --train.progress false", True),
        ("--data.name f --source.name timm:x --source.canvas 64", True),
        ("", False),
        ("--data.max_train 9", False),
        ("--data.name f --config quickstart", False),
        ("--data.name f --method blm", False),
        ("--data.name f --prompt.kind border", False),
        ("--data.name f --train.epochs 3", False),
        ("--data.name f --optim.lr 1", False),
        ("--data.name f --weights.kind full", False),
    ],
)
def test_settings_are_chosen_where_the_data_alone_is_given(command, first):
    assert is_first_use(given_keys(command.split())) is first


def test_the_canvas_follows_the_images_and_what_was_given_stays(tmp_path):
    for side in (28, 200):
        for label in ("a", "b"):
            for place in range(4):
                path = tmp_path / str(side) / label / f"{place}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                photo(side // 2, side, place).save(path)
    found = {}
    for side in (28, 200):
        config = RunConfig(data=DataConfig(name=str(tmp_path / str(side))), seed=5)
        task = load_task(config.data, seed=5)
        found[side], said = first_settings(config, task, {"data.name"})
        assert len(said.splitlines()) == 3 and f"about {side} pixels" in said
        method = yaml.safe_load(methods()["linear_probe"].read_text())
        for section, keys in method.items():
            for key, value in keys.items():
                assert getattr(getattr(found[side], section), key) == value
        assert found[side].seed == 5 and found[side].output == config.output
    assert found[28].source.canvas == 160 and found[200].source.canvas is None
    config.source.canvas = 96
    assert first_settings(config, task, {"data.name", "source.canvas"})[0].source.canvas == 96


def test_a_first_run_says_what_it_chose_and_how_to_go_on(tiny_timm, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("clipvp.cli.first_use.first_source", lambda: tiny_timm)
    monkeypatch.setattr("clipvp.artifact.pictures.save_pictures", lambda *_: ["curves.png"])
    write_image_folder(tmp_path / "my images", {"train": 30, "val": 9, "test": 9}, 3)
    main(["train", "--data.name", "my images"])
    printed = capsys.readouterr().out
    assert "chosen, since no config was given" in printed and "method linear_probe" in printed
    [results] = Path("runs").glob("*/results.json")
    assert read_results(results.parent)["mapping"]["kind"] == "logistic"
    commands = [line.strip().split("  ")[0] for line in printed.partition("go on with")[2].splitlines()]
    verbs = [shlex.split(command)[1:] for command in commands if command]
    assert [verb[0] for verb in verbs] == ["predict", "report", "demo"]
    predict = [*verbs[0][:-1], "my images/test/class1"]  # in the place of IMAGES
    main(predict)
    assert "class1" in capsys.readouterr().out
    main(verbs[1])
    assert (results.parent / "report.html").exists()
    assert Path(verbs[2][1], "config.json").is_file()


def test_without_matplotlib_a_run_ends_well(monkeypatch):
    from clipvp.artifact import pictures

    monkeypatch.setattr(pictures, "find_spec", lambda name: None)
    assert "pip install 'clipvp[plots]'" in pictures.pictures(None, None, None)


@pytest.fixture
def quick(monkeypatch):
    """No look at the network."""
    monkeypatch.setattr("clipvp.sources.hub.is_reachable", lambda endpoint: False)


def test_doctor_finds_nothing_wrong_here(quick, capsys):
    main(["doctor"])
    printed = capsys.readouterr().out
    assert "torch" in printed and "extra offline" in printed and doctor.WRONG not in printed
    assert "hub: unset HF_HUB_OFFLINE" in printed  # the tests set it


def test_doctor_says_what_to_do(quick, monkeypatch, tmp_path, capsys):
    known = metadata.version

    def version(name):
        if name == "timm":
            raise metadata.PackageNotFoundError(name)
        return "0.1" if name == "pillow" else known(name)

    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(doctor, "find_spec", lambda module: None if module == "gradio" else object())
    monkeypatch.setenv("CLIPVP_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])
    said = capsys.readouterr()
    assert ended.value.code == 2 and said.err.splitlines() == ["error: pillow, timm, cache: see above"]
    assert 'timm: pip install "timm>=' in said.out and "0.1, needs >=10.1" in said.out
    assert "cache: set CLIPVP_CACHE to a folder" in said.out
    assert "extra demo: pip install 'clipvp[demo]'" in said.out


def test_doctor_says_that_torch_is_broken(quick, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it fails
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])
    said = capsys.readouterr()
    assert ended.value.code == 2 and said.err.splitlines() == ["error: PyTorch: see above"]
    assert "cannot be imported" in said.out and "PyTorch: install it anew" in said.out
    assert "extra demo" in said.out  # the rest is looked at all the same


def test_doctor_knows_every_extra_that_a_user_installs():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert doctor._EXTRAS.keys() == project["optional-dependencies"].keys() - {"dev", "docs"}
