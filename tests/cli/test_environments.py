"""Homes, consoles, and systems without what Unix has: the commands work there, or say one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import photo, write_image_folder
from test_model import made

from clipvp.cli.main import main
from clipvp.config.schema import DataConfig, RunConfig, SourceConfig
from clipvp.files import cache_root
from clipvp.labels.templates import resolve_templates

TRAIN = Path(__file__).parents[2] / "recipes" / "train.py"


@pytest.fixture
def home(tmp_path, monkeypatch, tiny_timm) -> Path:
    """A home with a saved prompt, images and data in it; the working folder is another one."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    made(tiny_timm).save_pretrained(tmp_path / "prompt")
    photo(20, 30).save(tmp_path / "a.jpg")
    write_image_folder(tmp_path / "data", {"train": 12, "test": 6}, 3)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path


def test_the_home_is_known_in_every_path(home, tiny_timm, capsys):
    model = f"timm:local-dir:~/{os.path.relpath(tiny_timm.rpartition(':')[2], home)}"
    (home / "templates.txt").write_text("a {}.\n", encoding="utf-8-sig")
    (home / "a.yaml").write_text(
        "data: {name: ~/data, cache_dir: ~/cache}\noutput: ~/run\n", encoding="utf-8-sig"
    )
    train = [
        sys.executable,
        str(TRAIN),
        "--config",
        "~/a.yaml",
        "--source.name",
        model,
        "--source.canvas",
        "32",
    ]
    subprocess.run(
        [*train, "--train.epochs", "1"],
        check=True,
        capture_output=True,
        env={**os.environ, "HOME": str(home)},
    )
    main(["report", "~/run", "--output", "~/pages/page.html"])
    main(["predict", "~/prompt", "~/a.jpg"])
    main(["show", "~/prompt"])
    main(["map", "~/prompt"])
    main(["evaluate", "~/run/prompt", "--data.name", "~/data", "--json", "~/scores.json"])
    assert json.loads((home / "scores.json").read_text())["n"] == 6
    assert (home / "pages" / "page.html").exists() and (home / "cache" / "images").is_dir()
    assert (home / "run" / "results.json").exists() and resolve_templates("~/templates.txt") == ("a {}.",)
    assert list((home / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8", "cp932"])
def test_names_that_the_console_lacks(encoding, home):
    """Class names are in Chinese and German; a redirected output on Windows is cp1252."""
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    for arguments in (["predict", "../prompt", "../a.jpg"], ["show", "../prompt"], ["map", "../prompt"]):
        command = [sys.executable, "-m", "clipvp", *arguments]
        ended = subprocess.run(command, capture_output=True, env=environment)
        assert ended.returncode == 0, ended.stderr
        text = ended.stdout.decode(encoding)
        for name in ("Grün", "青"):
            assert name.encode(encoding, "backslashreplace").decode(encoding) in text
    command = [sys.executable, "-m", "clipvp", "predict", "../prompt", "../a.jpg", "--json"]
    out = subprocess.run(command, capture_output=True, env=environment, check=True).stdout
    labels = {row["label"] for row in json.loads(out.decode(encoding))[0]["predictions"]}
    assert labels == {"red thing", "Grün", "青"}


def test_a_user_without_a_home(monkeypatch):
    for name in ("HOME", "XDG_CACHE_HOME", "CLIPVP_CACHE"):
        monkeypatch.delenv(name, raising=False)

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert cache_root().name.startswith("clipvp-")


@pytest.mark.parametrize(
    "source", ["timm:hf-hub:timm/resnet18.a1_in1k", "open_clip:ViT-B-32/openai", "hf:C:\\models\\a?b"]
)
@pytest.mark.parametrize("data", ["pets", "D:\\data\\x", "a/b", "what?*"])
def test_the_default_output_is_a_folder_on_every_system(source, data):
    output = RunConfig(source=SourceConfig(name=source), data=DataConfig(name=data)).output
    assert output.count("/") == 1 and not set(output) & set('\\:*?"<>|')


def test_the_module_that_only_unix_has_is_not_needed(home):
    """As on Windows, where there is no module ``resource`` and no ``fcntl``."""
    code = "import sys; sys.modules['resource'] = None; from clipvp.cli.main import main; main(['env'])"
    subprocess.run([sys.executable, "-c", f"{code}; from clipvp import fit"], check=True, capture_output=True)
