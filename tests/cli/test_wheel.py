"""The wheel and the sdist are enough: built, installed into an empty environment, used from another folder."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import write_image_folder

ROOT = Path(__file__).parents[2]
BUILD = "import sys; from hatchling.build import {0}; print({0}(sys.argv[1]))"


def built(what: str, folder: Path, output: Path) -> Path:
    """Return the file that the build backend makes of a source folder, without asking a registry."""
    code = BUILD.format(f"build_{what}")
    done = subprocess.run(
        [sys.executable, "-c", code, str(output)], cwd=folder, capture_output=True, text=True, check=True
    )
    return output / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> tuple[Path, Path]:
    """Return the Python of an environment with the wheel in it, made from the sdist, and the wheel.

    What this environment has installed is seen there too, but for clipvp.
    """
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("dist")
    sdist = built("sdist", ROOT, folder)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    wheel = built("wheel", folder / sdist.name.removesuffix(".tar.gz"), folder)
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index"]
    subprocess.run([*install, "--quiet", "--disable-pip-version-check", str(wheel)], check=True)
    # Files of this kind in the folders that one of them names are not read: an editable clipvp stays unseen.
    others = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    Path(site, "dependencies.pth").write_text("\n".join(others) + "\n")
    return python, wheel


@pytest.mark.slow
def test_the_wheel_holds_the_package_the_recipes_and_no_more(installed):
    names = zipfile.ZipFile(installed[1]).namelist()
    tracked = subprocess.run(
        ["git", "ls-files", "clipvp", "recipes"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    expected = {
        name.replace("recipes/", "clipvp/_recipes/", 1) if name[0] == "r" else name for name in tracked
    }
    missing = {name for name in expected - {*names} if (ROOT / name).exists()}
    assert not missing and all(name.startswith(("clipvp/", "clipvp-")) for name in names)
    assert not [name for name in names if "__pycache__" in name or "test" in Path(name).stem.split("_")]


@pytest.mark.slow
def test_train_predict_and_report_from_another_folder(installed, tiny_timm, tmp_path):
    python, _ = installed
    write_image_folder(tmp_path / "images", {"train": 12, "val": 6, "test": 6}, 3)
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command: str) -> str:
        done = subprocess.run([*map(str, command)], cwd=tmp_path, env=kept, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = run(python, "-c", "import clipvp, clipvp.presets; print(clipvp.__file__, clipvp.presets.FOLDER)")
    inside = python.parents[1].as_posix()
    assert all(path.startswith(inside) for path in where.split()) and "_recipes" in where
    clipvp = python.parent / "clipvp"
    assert "blm_plus" in run(clipvp, "list", "methods")
    assert "offline:lite0" in run(clipvp, "train", "--config", "quickstart", "--print_config")
    small = ["--source.name", tiny_timm, "--source.canvas", "32", "--prompt.image-size", "16"]
    small += ["--data.name", "images", "--train.epochs", "1", "--method", "flm", "--output", "run"]
    launched = [python, "-m", "accelerate.commands.launch", "--num_processes=2", "--cpu", "--num_machines=1"]
    run(*launched, "--mixed_precision=no", "--dynamo_backend=no", "-m", "clipvp", "train", *small)
    assert "class" in run(python, "-m", "clipvp", "predict", "run/prompt", "images/test")
    run(clipvp, "report", "run")
    assert (tmp_path / "run" / "report.html").exists()
