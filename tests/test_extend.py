"""The plug-ins of the page Extend work from a folder outside the package: in recipes, verbs, artefacts, reports."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import write_image_folder
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "pages" / "extend.md").read_text(encoding="utf-8")


def run(*command: str, cwd: Path, code: int = 0) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == code, done.stderr[-3000:]
    return done


@pytest.fixture
def folder(tmp_path):
    """A folder with the three plug-ins of the page and some images."""
    files = dict(re.findall(r"^`(\w+\.py)`:.*?```python\n(.*?)```", PAGE, flags=re.S | re.M))
    assert set(files) == {"votes.py", "tint.py", "others.py"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    write_image_folder(tmp_path / "images", {"train": 48, "test": 12}, 3)
    return tmp_path


def train(source: str, *options: str, recipe: str = "train") -> list[str]:
    given = {
        "source.name": source,
        "source.canvas": 32,
        "data.name": "images",
        "train.epochs": 2,
        "train.batch_size": 16,
        "optim.lr": 0.1,
    }
    return [
        ROOT / "recipes" / f"{recipe}.py",
        *(f"--{key}={value}" for key, value in given.items()),
        *options,
    ]


CLI = ("-m", "clipvp.cli.main")


def test_a_mapping_from_the_page(folder, tiny_timm):
    options = [
        "--plugins",
        "votes.py",
        "--mapping.kind",
        "votes",
        "--mapping.k",
        "2",
        "--prompt.image_size",
        "16",
    ]
    run(*train(tiny_timm, *options, "--output", "run"), cwd=folder)
    results = json.loads((folder / "run" / "results.json").read_text())
    assert results["mapping"] == {"kind": "votes", "num_source": 20, "num_target": 3, "k": 2}
    row = results["mapping_table"][0]
    assert [link["weight"] for link in row["links"]] == [0.5, 0.5] and row["label"] == row["links"][0][
        "label"
    ]
    saved = json.loads((folder / "run" / "prompt" / "config.json").read_text())
    assert saved["plugins"] == ["votes.py"] and saved["version"] == 2

    # With the plug-in everything works, without it there is one line, and nothing is imported by itself.
    image = next((folder / "images" / "test").rglob("*.png"))
    done = run(*CLI, "predict", "run/prompt", image, "--plugins", "votes.py", "--json", cwd=folder)
    assert len(json.loads(done.stdout)[0]["predictions"]) == 3
    missing = run(*CLI, "predict", "run/prompt", image, cwd=folder, code=2).stderr
    assert missing.startswith("error: ") and missing.count("\n") == 1
    assert "mapping 'votes'" in missing and "votes.py" in missing and "--plugins" in missing
    for verb in (["show", "run/prompt"], ["map", "run/prompt"], ["report", "run"]):
        run(*CLI, *verb, cwd=folder)
    assert row["label"] in (folder / "run" / "report.html").read_text()
    done = run(
        *CLI,
        "evaluate",
        "run/prompt",
        "--plugins",
        "votes.py",
        "--data.name",
        "images",
        "--json",
        "s.json",
        cwd=folder,
    )
    assert json.loads((folder / "s.json").read_text())["acc1"] == results["metrics"]["test.best_val"]["acc1"]

    # A resumed run goes on to the same bits, and one that already ended trains nothing more.
    half = ["--output", "half", "--train.keep", "9"]
    run(*train(tiny_timm, *options, *half), cwd=folder)
    last = sorted((folder / "half" / "checkpoints").iterdir())[-1]
    last.unlink(), (folder / "half" / "results.json").unlink()
    run(*train(tiny_timm, *options, *half, "--resume", "auto"), cwd=folder)
    weights = [(folder / name / "prompt" / "model.safetensors").read_bytes() for name in ("run", "half")]
    assert weights[0] == weights[1]


def test_help_and_errors_know_the_keys_of_a_plugin(folder):
    recipe = ROOT / "recipes" / "train.py"
    shown = run(recipe, "--plugins", "votes.py", "--mapping.kind", "votes", "--help", cwd=folder).stdout
    assert "--mapping.k K" in shown and "Source labels a class, 1 or more." in shown
    assert "--mapping.refresh" not in shown
    (folder / "a.yaml").write_text("plugins: [votes.py]\nmapping: {kind: votes, kk: 3}\n")
    wrong = run(recipe, "--config", "a.yaml", cwd=folder, code=2).stderr
    assert "'mapping.kk'" in wrong and "did you mean 'mapping.k'" in wrong and "'votes'" in wrong
    assert (
        "mapping.k: 0"
        in run(
            recipe, "--plugins", "votes.py", "--mapping.kind=votes", "--mapping.k=0", cwd=folder, code=2
        ).stderr
    )
    assert "no file 'vote.py'" in run(recipe, "--plugins", "vote.py", cwd=folder, code=2).stderr
    (folder / "broken.py").write_text("import no_such_module_of_ours\n")
    assert (
        "'broken.py' cannot be imported" in run(recipe, "--plugins", "broken.py", cwd=folder, code=2).stderr
    )
    assert "unknown mapping 'votes'" in run(recipe, "--mapping.kind", "votes", cwd=folder, code=2).stderr


def test_a_prompt_from_the_page(folder, tiny_timm):
    options = ["--plugins", "tint.py", "--prompt.kind", "tint", "--prompt.strength", "2"]
    groups = "{prompt.offset: {lr: 0.003, schedule: constant}}"
    run(*train(tiny_timm, *options, "--optim.groups", groups, "--output", "run"), cwd=folder)
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(row["lr.prompt.offset"] == 0.003 for row in rows) and rows[0]["lr"] == 0.1
    tensors = load_file(folder / "run" / "prompt" / "model.safetensors")
    moved = {name: float(value.abs().max()) for name, value in tensors.items() if name.startswith("prompt.")}
    assert (
        set(moved) == {"prompt.gain", "prompt.offset"}
        and 0 < moved["prompt.offset"] < 0.1 < moved["prompt.gain"]
    )
    assert json.loads((folder / "run" / "results.json").read_text())["run_info"]["trainable_parameters"] == 6
    run(*CLI, "export", "run/prompt", "--plugins", "tint.py", "--onnx", "tint.onnx", cwd=folder)
    wrong = run(*train(tiny_timm, *options, "--optim.groups", "{offset: {lr: 1}}"), cwd=folder, code=2).stderr
    assert "a group 'offset'" in wrong and "prompt.offset" in wrong


def test_a_comparison_of_methods_of_ones_own(folder, tiny_timm):
    options = ["--plugins", "[votes.py,tint.py]", "--prompt.kind", "tint", "--output", "all"]
    vary = ["--vary", "{mapping.kind: [votes, frequency]}", "--seeds", "[0]", "--train.epochs", "1"]
    done = run(*train(tiny_timm, *options, *vary, recipe="compare"), cwd=folder)
    assert "mapping.kind=votes" in done.stdout and "mapping.kind=frequency" in done.stdout


def test_a_source_a_task_an_optimiser_and_a_gradient_rule_from_the_page(folder):
    command = next(
        block for block in re.findall(r"```bash\n(.*?)```", PAGE, flags=re.S) if "others.py" in block
    )
    arguments = command.replace("\\\n", " ").split()[1:]
    run(*CLI, *arguments, "--train.epochs", "6", "--optim.lr", "0.05", "--train.batch_size", "12", cwd=folder)
    results = json.loads((folder / "runs" / "others" / "results.json").read_text())
    config = results["config"]
    assert (config["source"]["sharpness"], config["optim"]["damping"], config["train"]["radius"]) == (
        4.0,
        0.001,
        0.02,
    )
    rows = [
        json.loads(line) for line in (folder / "runs" / "others" / "metrics.jsonl").read_text().splitlines()
    ]
    assert rows[-1]["train_loss"] < rows[0]["train_loss"]
    saved = json.loads((folder / "runs" / "others" / "prompt" / "config.json").read_text())
    assert saved["source"]["options"] == {"sharpness": 4.0} and saved["plugins"] == ["others.py"]
    code = (
        "import others, sys; from clipvp import PromptedClassifier;"
        "print(PromptedClassifier.from_pretrained('runs/others/prompt').source.options)"
    )
    assert "4.0" in run("-c", code, cwd=folder).stdout  # imported in Python, not named


@pytest.mark.slow
def test_a_plugin_on_two_processes_gives_the_bits_of_one(folder, tiny_timm):
    options = ["--plugins", "votes.py", "--mapping.kind", "votes", "--prompt.image_size", "16"]
    one = ["--train.gradient_accumulation_steps", "2", "--output", "one"]
    run(*train(tiny_timm, *options, *one), cwd=folder)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    launcher = [
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes=2",
        "--mixed_precision=no",
    ]
    launcher += ["--num_machines=1", "--dynamo_backend=no", "--main_process_port=0"]
    command = [sys.executable, *launcher, *map(str, train(tiny_timm, *options, "--output", "two"))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    tensors = [load_file(folder / name / "prompt" / "model.safetensors") for name in ("one", "two")]
    assert all(torch.equal(value, tensors[1][name]) for name, value in tensors[0].items())
