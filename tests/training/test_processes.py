"""Many processes give what one gives: the counts and the mapping exactly, the prompt to float rounding."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import write_image_folder
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from clipvp import UserError, build_classifier, fit, load_task
from clipvp.config.parse import parse
from clipvp.data.batches import Batches
from clipvp.data.sets import ImageTensors

ROOT = Path(__file__).parents[2]


def ranks(count: int, world: int) -> list[Batches]:
    tensors = ImageTensors(torch.zeros(count, 3, 1, 1, dtype=torch.uint8), torch.arange(count))
    device = torch.device("cpu")
    return [
        Batches(tensors, SimpleNamespace(process_index=rank, num_processes=world, device=device))
        for rank in range(world)
    ]


def cut(batch: torch.Tensor, world: int, parts: int) -> list[list[int]]:
    """Return the parts of a step, of all processes in turn."""
    return [part.tolist() for view in ranks(1, world) for part in view.share(batch, parts)]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 40))
def test_processes_times_parts_decide_how_a_step_is_cut(world, parts, size):
    batch = torch.randperm(size)
    alone = cut(batch, 1, world * parts)
    assert sum(alone, []) == batch.tolist() and len(alone) == world * parts
    assert cut(batch, world, parts) == cut(batch, parts, world) == alone


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 50), st.integers(1, 9), st.integers(1, 20))
def test_processes_share_the_batches_of_a_pass(count, world, size):
    views = ranks(count, world)
    passes = [[labels.tolist() for _, labels in view.local_batches(size)] for view in views]
    [alone] = ranks(count, 1)
    assert sum(passes, []) == [labels.tolist() for _, labels in alone.local_batches(size)]
    assert sum(sum(passes, []), []) == list(range(count))
    assert [view.num_local_images(size) for view in views] == [sum(map(len, batches)) for batches in passes]


def test_processes_that_do_not_know_of_each_other_are_refused(tiny_timm, tiny_task, tmp_path, monkeypatch):
    config, _ = parse("a test", arguments=settings_of("digits", tiny_timm, tmp_path / "run", "exact"))
    classifier = build_classifier(config, tiny_task)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        UserError, match="2 processes were launched, and accelerate sees 1; .*ACCELERATE_USE_CPU"
    ):
        fit(classifier, tiny_task, config)
    assert not (tmp_path / "run").exists()


def settings_of(folder: Path | str, source: str, output: Path, statistics: str) -> list[str]:
    values = {
        "source.name": source,
        "source.canvas": 32,
        "prompt.image_size": 16,
        "mapping.statistics": statistics,
        "data.name": folder,
        "data.cache_dir": f"{output}-cache",
        "optim.lr": 0.1,
        "train.epochs": 3,
        "train.batch_size": 16,
        "train.progress": "false",
        "output": output,
    }
    return [f"--{key}={value}" for key, value in values.items()]


def alone(arguments: list[str]) -> None:
    """Train in this process."""
    config, _ = parse("a test", arguments=arguments)
    task = load_task(config.data, seed=config.seed)
    fit(build_classifier(config, task), task, config)


TRAIN = ROOT / "recipes" / "train.py"


def launchers(
    processes: int, machines: int, arguments: list[str], script: Path = TRAIN
) -> list[subprocess.Popen]:
    """Start a script in so many processes on the CPU, shared by so many launchers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # accelerate's --cpu starts a single process where there is no MPI; so it is told twice.
    options = {"num_processes": processes, "num_machines": machines, "main_process_ip": "127.0.0.1"}
    options |= {"main_process_port": port, "mixed_precision": "no", "dynamo_backend": "no"}
    if machines > 1:
        options |= {"rdzv_backend": "static"}
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    launcher += [f"--{key}={value}" for key, value in options.items()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return [
        subprocess.Popen(
            [*launcher, f"--machine_rank={rank}", str(script), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(machines)
    ]


def launched(processes: int, arguments: list[str], machines: int = 1) -> str:
    """Train in so many processes; return what they print."""
    running = launchers(processes, machines, arguments)
    said = [one.communicate(timeout=300) for one in running]
    for one, (_, error) in zip(running, said, strict=True):
        assert one.returncode == 0, error[:3000]
    return "".join(out for out, _ in said)


def left_by(output: Path) -> tuple[dict, list[dict], torch.Tensor]:
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    tensors = load_file(output / "prompt" / "model.safetensors")
    delta = torch.cat([tensors[name].flatten() for name in sorted(tensors) if name.startswith("prompt.")])
    return json.loads((output / "results.json").read_text()), rows, delta


def check_same(one: Path, many: Path, processes: int) -> None:
    """Two runs counted, mapped and scored alike, and their prompts agree to float rounding."""
    (results, rows, delta), (theirs, their_rows, their_delta) = left_by(one), left_by(many)
    assert (results["run_info"]["world_size"], theirs["run_info"]["world_size"]) == (1, processes)
    for key in ("metrics", "mapping_table", "split_hash", "num_train", "best_epoch"):
        assert theirs[key] == results[key]
    for row, other in zip(rows, their_rows, strict=True):
        for key in ("source_index", "train_acc1", "val_acc1", "lr"):
            assert other[key] == row[key]
        assert other["train_loss"] == pytest.approx(row["train_loss"], rel=1e-5)
    assert delta.norm() > 0 and (their_delta - delta).norm() <= 1e-5 * delta.norm()


@pytest.fixture
def images(tmp_path):
    """Neither the batches of 16, nor the last one of 7, nor the 29 test images divide by 2 or 3 processes."""
    return write_image_folder(tmp_path / "images", {"train": 55, "val": 11, "test": 29}, 3)


@pytest.mark.slow
@pytest.mark.parametrize("processes, statistics", [(2, "exact"), (3, "running")])
def test_many_processes_give_what_one_gives(processes, statistics, images, tiny_timm, tmp_path):
    alone(settings_of(images, tiny_timm, tmp_path / "one", statistics))
    printed = launched(processes, settings_of(images, tiny_timm, tmp_path / "many", statistics))
    assert printed.count("test, last epoch") == 1  # one process speaks
    check_same(tmp_path / "one", tmp_path / "many", processes)


def computed(output: Path) -> tuple[dict, list[dict], bytes]:
    """Return what a run left, to the bit, but for its time, its machine and how it was started."""
    results, rows, _ = left_by(output)
    kept = {key: value for key, value in results.items() if key not in ("seconds", "run_info", "config")}
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
    return kept, rows, (output / "prompt" / "model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("statistics", ["exact", "running"])
def test_as_many_parts_a_step_give_the_same_bits_on_a_real_network(statistics, tmp_path):
    """Where activations have kinks, rounding grows in few steps into another prompt; the same parts round alike, with
    the same number of threads."""
    settings = [*settings_of("mnist5k", "offline:lite0", tmp_path / "one", statistics), "--optim.lr=0.05"]
    settings += ["--source.canvas=64", "--prompt.image_size=32", "--data.max_train=120", "--data.max_test=50"]
    parts = "--train.gradient_accumulation_steps"
    alone([*settings, f"{parts}=6"])
    one = computed(tmp_path / "one")
    launched(2, [*settings, f"{parts}=3", f"--output={tmp_path / 'two'}"])
    assert computed(tmp_path / "two") == one
    launched(3, [*settings, f"{parts}=2", f"--output={tmp_path / 'three'}"])
    assert computed(tmp_path / "three") == one


FAMILIES = {
    "BLM+ running": ["--mapping.kind=blm_plus", "--mapping.statistics=running"],
    "linear head": ["--mapping.kind=linear", "--mapping.start=means", "--mapping.standardise=true"],
    "linear probe": ["--mapping.kind=logistic", "--prompt.kind=none"],
    "a mask network with batch norms": ["--prompt.kind=smm", "--prompt.patch_size=4"],
    "crops of the original images": ["--train.augment=random_resized_crop"],
    "a core that is kept": [
        *["--train.keep_core=memory", "--prompt.kind=border", "--prompt.width=2"],
        "--source.canvas=64",  # with 32 pixels nothing is kept
    ],
    "normalised steps": ["--optim.name=normalized_sgd", "--optim.lr=3", "--prompt.bounded=false"],
}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_methods_gives_the_same_bits(family, images, tiny_timm, tmp_path):
    def left(processes: int) -> tuple:
        output = tmp_path / str(processes)
        given = [
            given for given in settings_of(images, tiny_timm, output, "exact") if "mapping." not in given
        ]
        other_prompt = any("prompt.kind" in each for each in FAMILIES[family])
        given = [each for each in given if not other_prompt or "image_size" not in each]
        given += [*FAMILIES[family], f"--train.gradient_accumulation_steps={6 // processes}"]
        launched(processes, given) if processes > 1 else subprocess.run(
            [sys.executable, str(TRAIN), *given], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        rows = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
        results = json.loads((output / "results.json").read_text())
        kept = {key: results[key] for key in ("metrics", "mapping_table", "split_hash", "best_epoch")}
        return kept, rows, (output / "prompt" / "model.safetensors").read_bytes()

    one = left(1)
    assert left(2) == one and left(3) == one


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ilm", "dga"])
def test_many_processes_give_what_one_gives_with_a_label_space_of_text(method, images, tiny_model, tmp_path):
    source = tiny_model("hf_clip")
    clip = ["--mapping.templates=paper", "--optim.lr=0.01"]
    if method == "dga":
        clip += ["--prompt.kind=dga", "--prompt.crop_step=2", "--mapping.kind=dga"]

    def options(output: str) -> list[str]:
        given = settings_of(images, source, tmp_path / output, "exact")
        return [each for each in given if method == "ilm" or "statistics" not in each] + clip

    alone(options("one"))
    launched(2, options("many"))
    check_same(tmp_path / "one", tmp_path / "many", 2)
    assert left_by(tmp_path / "one")[0]["mapping"]["num_source"] == 81 * 3


@pytest.mark.slow
def test_two_machines_are_one_with_two_processes(images, tiny_timm, tmp_path):
    alone(settings_of(images, tiny_timm, tmp_path / "one", "exact"))
    launched(2, settings_of(images, tiny_timm, tmp_path / "many", "exact"), machines=2)
    check_same(tmp_path / "one", tmp_path / "many", 2)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(images, tiny_timm, tmp_path):
    parts = "--train.gradient_accumulation_steps"
    alone([*settings_of(images, tiny_timm, tmp_path / "one", "running"), f"{parts}=2"])
    settings = [*settings_of(images, tiny_timm, tmp_path / "many", "running"), "--train.keep=100"]
    alone([*settings, f"{parts}=2", "--train.save_minutes=1e-9"])
    checkpoints = sorted((tmp_path / "many" / "checkpoints").iterdir())
    for path in checkpoints[6:]:  # the second epoch has begun
        path.unlink()
    printed = launched(2, [*settings, "--resume=auto", "--train.progress=true"])
    assert f"going on from {checkpoints[5]}, epoch 2, step 2" in printed
    check_same(tmp_path / "one", tmp_path / "many", 2)
    assert computed(tmp_path / "one") == computed(tmp_path / "many")


@pytest.mark.slow
def test_several_prompts_and_counted_texts_on_two_processes_and_after_a_resume(images, tiny_model, tmp_path):
    def settings(output: str, parts: int) -> list[str]:
        given = settings_of(images, tiny_model("hf_clip"), tmp_path / output, "running")
        given += [
            "--mapping.kind=text_counts",
            "--mapping.templates=simple",
            "--prompt.views=2",
            "--optim.lr=1",
        ]
        given += ["--train.batch_size=6", "--train.epochs=2", "--train.keep=100", "--train.save_minutes=1e-9"]
        return [*given, f"--train.gradient_accumulation_steps={parts}"]

    alone(settings("one", 2))
    launched(2, settings("two", 1))
    one = computed(tmp_path / "one")
    assert computed(tmp_path / "two") == one
    weights = load_file(tmp_path / "one" / "prompt" / "model.safetensors")
    deltas = [value for name, value in weights.items() if name.startswith("prompt.")]
    assert len(deltas) == 2 and not torch.equal(*deltas) and len(weights["mapping.weight"].unique()) > 1
    checkpoints = sorted((tmp_path / "two" / "checkpoints").iterdir())
    assert [path.stem for path in checkpoints] == [f"step-{step:08d}" for step in (8, 10, 18, 20)]
    for path in checkpoints[1:]:  # both processes had counted a part of the epoch
        path.unlink()
    alone([*settings("two", 2), "--resume=auto"])
    assert computed(tmp_path / "two") == one


def begun(output: Path, settings: list[str]) -> subprocess.Popen:
    """Return the launcher of two processes that have saved a first checkpoint and have many to come."""
    [running] = launchers(2, 1, [*settings, "--train.save_minutes=1e-9", "--resume=auto"])
    while running.poll() is None and not list(output.glob("checkpoints/*.safetensors")):
        time.sleep(0.005)
    return running


@pytest.mark.slow
def test_processes_that_are_asked_to_stop_save_together(images, tiny_timm, tmp_path):
    alone([*settings_of(images, tiny_timm, tmp_path / "one", "exact"), "--train.batch_size=3"])
    settings = [*settings_of(images, tiny_timm, tmp_path / "many", "exact"), "--train.batch_size=3"]
    running = begun(tmp_path / "many", settings)
    running.terminate()
    _, said = running.communicate(timeout=120)
    assert running.returncode != 0 and not (tmp_path / "many" / "results.json").exists()
    assert len(re.findall("^stopped at epoch .*, step .* saved; go on", said, re.MULTILINE)) == 1
    launched(2, [*settings, "--resume=auto"])
    check_same(tmp_path / "one", tmp_path / "many", 2)


@pytest.mark.slow
def test_a_killed_process_ends_the_run_and_the_run_goes_on(images, tiny_timm, tmp_path):
    alone(settings_of(images, tiny_timm, tmp_path / "one", "exact"))
    settings = settings_of(images, tiny_timm, tmp_path / "many", "exact")
    running = begun(tmp_path / "many", settings)
    # Of the launcher's processes, all but the main one.
    found = subprocess.run(["pgrep", "-P", str(running.pid)], capture_output=True, text=True).stdout.split()
    for child in found:
        if b"RANK=1\0" in Path(f"/proc/{child}/environ").read_bytes().replace(b"LOCAL_RANK=1\0", b""):
            os.kill(int(child), signal.SIGKILL)
    running.communicate(timeout=120)  # nobody waits for the one that is gone
    assert running.returncode != 0 and not (tmp_path / "many" / "results.json").exists()
    launched(2, [*settings, "--resume=auto"])
    check_same(tmp_path / "one", tmp_path / "many", 2)


@pytest.mark.slow
def test_a_loss_that_is_no_number_ends_all_processes(images, tiny_timm, tmp_path):
    settings = settings_of(images, tiny_timm, tmp_path / "many", "exact")
    settings = [setting for setting in settings if not setting.startswith("--prompt.")]
    too_high = ["--prompt.kind=full", "--optim.name=sgd", "--optim.lr=1e30", "--optim.weight_decay=1e30"]
    [running] = launchers(2, 1, [*settings, *too_high])
    _, said = running.communicate(timeout=120)
    assert running.returncode != 0 and len(re.findall("^error: the loss turned NaN", said, re.MULTILINE)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_what_fails_on_one_process_fails_on_all(rank, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"""
from accelerate import Accelerator
from clipvp import UserError
from clipvp.training.processes import main_first, fail_together

accelerator = Accelerator()
order = main_first(accelerator, lambda: accelerator.process_index)
try:
    with fail_together(accelerator):
        if accelerator.process_index == {rank}:
            raise OSError(28, "No space left on device", "a.json")
except (OSError, UserError) as error:
    print(f"{{order}} {{type(error).__name__}} {{error}}\\n", end="", flush=True)
accelerator.end_training()
""")
    [running] = launchers(2, 1, [], script)
    out, said = running.communicate(timeout=120)
    assert running.returncode == 0, said
    mine = f"{rank} OSError [Errno 28] No space left on device: 'a.json'"
    other = f"{1 - rank} UserError process {rank} failed: [Errno 28] No space left on device: 'a.json'"
    assert sorted(out.splitlines()) == sorted([mine, other])


@pytest.mark.slow
def test_processes_that_finetune_hold_one_network(images, tiny_timm, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"""
from accelerate import Accelerator
from clipvp import build_classifier, fit, load_task
from clipvp.config.values import from_dict

accelerator = Accelerator()
config = from_dict({{
    "source": {{"name": {tiny_timm!r}, "canvas": 32}}, "weights": {{"kind": "full"}},
    "prompt": {{"kind": "none"}}, "mapping": {{"kind": "linear"}},
    "data": {{"name": {str(images)!r}}}, "optim": {{"lr": 0.01}}, "output": {str(tmp_path / "run")!r},
    "train": {{"epochs": 2, "batch_size": 16, "progress": False}},
}})
task = load_task(config.data, seed=0)
classifier = build_classifier(config, task)
norm = next(module for module in classifier.source.network.modules() if hasattr(module, "running_mean"))
before = norm.running_mean.clone()
fit(classifier, task, config, accelerator)
state = classifier.source.state_dict()
assert not before.to(norm.running_mean.device).equal(norm.running_mean)
values = [value for value in state.values() if value.is_floating_point()]
every = [accelerator.gather(value[None]) for value in values]
apart = max(float((each - each[0]).abs().max()) for each in every)
print(f"apart {{apart}}\\n", end="", flush=True)
accelerator.end_training()
""")
    [running] = launchers(2, 1, [], script)
    out, said = running.communicate(timeout=120)
    assert running.returncode == 0, said
    assert out.splitlines() == ["apart 0.0"] * 2


@pytest.mark.slow
def test_adapters_with_dropout_are_the_same_on_two_processes(images, tiny_timm_vit, tmp_path):
    def options(output: str, *more: str) -> list[str]:
        values = {"weights.kind": "lora", "weights.dropout": 0.25, "prompt.kind": "none"}
        values |= {"mapping.kind": "linear", "source.name": tiny_timm_vit, "source.canvas": 32}
        values |= {"data.name": images, "data.cache_dir": tmp_path / "cache", "optim.lr": 0.01}
        values |= {"train.epochs": 2, "train.batch_size": 16, "train.progress": "false"}
        return [
            *(f"--{key}={value}" for key, value in values.items()),
            f"--output={tmp_path / output}",
            *more,
        ]

    alone(options("one", "--train.gradient_accumulation_steps=2"))
    launched(2, options("two"))
    one, two = (load_file(tmp_path / name / "prompt" / "model.safetensors") for name in ("one", "two"))
    assert any(".lora_" in name for name in one)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_processes_share_the_runs_of_a_comparison(images, tiny_timm, tmp_path):
    """One run is there before, so that the main process alone knows that nothing is left of it."""
    given = {
        "source.name": tiny_timm,
        "source.canvas": 32,
        "data.name": images,
        "data.cache_dir": tmp_path / "c",
    }
    given |= {
        "train.epochs": 2,
        "methods": "[flm, class_means]",
        "seeds": "[0, 1]",
        "output": tmp_path / "many",
    }
    options = [f"--{key}={value}" for key, value in given.items()]
    compare = ROOT / "recipes" / "compare.py"
    one = [*options, f"--output={tmp_path / 'one'}"]
    subprocess.run(
        [sys.executable, str(compare), *one], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    first = [*options, "--seeds=[0]"]
    for arguments in (first, options):
        [running] = launchers(2, 1, arguments, compare)
        said, error = running.communicate(timeout=300)
        assert running.returncode == 0, error[-3000:]
    assert "2 runs, about" in said and "(2 finished before)" in said
    rows = {name: json.loads((tmp_path / name / "compare.json").read_text()) for name in ("one", "many")}
    assert [row["cell"] for row in rows["many"]] == [row["cell"] for row in rows["one"]]
    for mine, theirs in zip(rows["many"], rows["one"], strict=True):
        assert mine["seeds"] == [0, 1] and mine["test.last"]["values"] == theirs["test.last"]["values"]
