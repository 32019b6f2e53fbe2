"""Two processes divide a comparison in one folder; one is killed in the middle of a run."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import small_config, write_image_folder

from clipvp import compare
from clipvp.results.folder import read_results

SECTIONS = {
    "prompt": {"kind": "full"},
    "mapping": {"kind": "linear"},
    "train": {"epochs": 4, "progress": False},
}
GRID = {"vary": {"optim.lr": [0.1, 0.2]}, "seeds": [0, 1]}
RUNS = [f"optim.lr={lr}/seed{seed}" for lr in (0.1, 0.2) for seed in (0, 1)]

WORKER = """
import json, sys, time
from pathlib import Path
from conftest import small_config
import clipvp.comparison.run as module
from clipvp import compare

source, images, output, sections, grid, stays = sys.argv[1:]
fit = module.fit
def told(classifier, task, run, accelerator):
    name = str(Path(run.output).relative_to(output))
    print("began", name, flush=True)
    def after_epoch(history):
        print("epoch", len(history), name, flush=True)
        if stays == "no" and len(history) == 2:
            time.sleep(1000)  # until it is killed
    return fit(classifier, task, run, accelerator, after_epoch)
module.fit = told
config = small_config(source, output, data={"name": images}, **json.loads(sections))
compare(config=config, **json.loads(grid), say=lambda line: print("say", line, flush=True))
"""


def worker(source: str, images: Path, output: Path, stays: str) -> subprocess.Popen:
    places = [str(Path(__file__).parents[1]), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))}
    given = [source, str(images), str(output), json.dumps(SECTIONS), json.dumps(GRID), stays]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", WORKER, *given], env=environment, **pipes)


def read_until(process: subprocess.Popen, start: str) -> list[str]:
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip("\n"))
        if lines[-1].startswith(start):
            return lines
    raise AssertionError(f"it never said {start!r}: {process.stderr.read()[-3000:]}")


@pytest.mark.slow
def test_the_run_of_a_killed_process_is_taken_over_and_nothing_runs_twice(tiny_timm, tmp_path):
    images = write_image_folder(tmp_path / "images", {"train": 40, "test": 15}, 3)
    output, alone = tmp_path / "shared", tmp_path / "alone"
    killed = stays = None
    try:
        killed = worker(tiny_timm, images, output, "no")
        first = read_until(killed, "epoch 2 ")
        stays = worker(tiny_timm, images, output, "yes")
        said = read_until(stays, "say waiting for 1 run of other processes")
        killed.send_signal(signal.SIGKILL)
        killed.communicate(timeout=60)
        assert killed.returncode == -signal.SIGKILL
        more, error = stays.communicate(timeout=300)
    finally:
        for process in filter(None, (killed, stays)):
            process.kill()
    assert stays.returncode == 0, error[-3000:]
    said += more.splitlines()

    def begun(lines: list[str]) -> list[str]:
        return [line.removeprefix("began ") for line in lines if line.startswith("began ")]

    [taken] = begun(first)
    assert sorted(begun(said)) == RUNS and begun(said)[-1] == taken
    # Its first epoch was saved and did not run again: the run goes on with what it had, and begins with the second.
    epochs = [line.split()[1] for line in said if line.startswith("epoch ") and line.endswith(taken)]
    assert epochs == ["1", "2", "3", "4"]

    config = small_config(tiny_timm, alone, data={"name": str(images)}, **SECTIONS)
    expected = compare(config=config, **GRID, say=lambda line: None)
    for name in RUNS:
        lines = (output / name / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3, 4]
        assert read_results(output / name)["metrics"] == read_results(alone / name)["metrics"]
        weights = [(folder / name / "prompt" / "model.safetensors") for folder in (output, alone)]
        assert weights[0].read_bytes() == weights[1].read_bytes()
    rows = json.loads((output / "compare.json").read_text())
    for key in ("test.last", "test.best_val", "val.best"):
        assert [row[key] for row in rows] == [row[key] for row in expected.rows]
