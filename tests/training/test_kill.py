"""A run that is killed, at any moment and as often as one likes, loses nothing and repeats nothing."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import left_by, write_image_folder


@pytest.mark.slow
def test_killed_at_random_moments_and_never_killed_are_one(tiny_timm, tmp_path, pytestconfig):
    folder = write_image_folder(tmp_path / "images", {"train": 60, "val": 18, "test": 40}, 3)
    values = {"source.name": tiny_timm, "source.canvas": 32, "prompt.image_size": 16, "data.name": folder}
    values |= {
        "train.epochs": 24,
        "train.batch_size": 16,
        "train.save_minutes": 0.0005,
        "train.progress": "false",
    }
    kills = pytestconfig.getoption("kills")

    def run(name: str, kills: int) -> dict[str, int]:
        given = {**values, "data.cache_dir": tmp_path / f"{name}-cache", "output": tmp_path / name}
        program = [sys.executable, str(Path(__file__).parents[1] / "kill_runs.py"), f"--kills={kills}"]
        command = [*program, *(f"--{key}={value}" for key, value in given.items())]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    assert run("whole", 0) == {}
    hit = run("killed", kills)
    print(f"killed in {hit}")
    assert sum(hit.values()) == kills and {"counting", "training", "saving", "testing"} <= set(hit)
    assert left_by(tmp_path / "killed") == left_by(tmp_path / "whole")
    assert not list((tmp_path / "killed").rglob("*.part"))  # nothing half-written stays
