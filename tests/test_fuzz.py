"""Files that are cut, changed or made up are refused in one line, or are harmless; nothing in them is executed.

More cases: python -m pytest tests/test_fuzz.py -n 2 --hypothesis-profile many
"""

import contextlib
import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from conftest import small_config, small_task, trained
from hypothesis import given
from hypothesis import strategies as st

from clipvp import PromptedClassifier, UserError, build_classifier
from clipvp.artifact.format import read_artifact
from clipvp.cli import parse
from clipvp.data.batches import Batches
from clipvp.files import load_state
from clipvp.progress import Progress
from clipvp.training.step import Trainer

QUICKSTART = (Path(__file__).parents[1] / "recipes" / "configs" / "quickstart.yaml").read_bytes()
ODD = [
    None,
    True,
    -1,
    0,
    1,
    3.5,
    10**30,
    -1e300,
    "",
    "x",
    "../../x",
    "/x",
    "auto",
    "\0",
    [],
    [1, 2],
    ["a"],
    {},
    [[]],
]
ODD += [{"a": 1}, {"epoch": 1}, [None]]
CODE = b"!!python/object/apply:os.system [touch {marker}]"
TOKENS = [
    b"!!python/name:os.system",
    b"&a [*a]",
    b"*a",
    b"{",
    b"]",
    b": :",
    b"null",
    b".nan",
    b"1e999",
    b"-1",
    b"0x10",
]
TOKENS += [
    b"../../../x",
    b"\t",
    b"\0",
    b"\xff\xfe",
    b"- ",
    b"? ",
    b"| ",
    b"---\n",
    b"true",
    b"[1, 2]",
    b"{a: b}",
    b"~",
]
TOKENS += [b"9" * 400, b"\n", b"<<: *x", b"source:", b"prompt: padding\n", b"train:\n  epochs: no\n"]


@st.composite
def changed(draw, content: bytes, tokens: list[bytes]) -> bytes:
    """Draw content with a few bits turned, bytes cut out, or tokens put in."""
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(content) - 1)))
        kind = draw(st.sampled_from(["turn", "cut", "drop", "put"]))
        if kind == "turn" and content:
            bit = bytes([content[place] ^ (1 << draw(st.integers(0, 7)))])
            content = content[:place] + bit + content[place + 1 :]
        elif kind == "cut":
            content = content[:place]
        elif kind == "drop":
            content = content[:place] + content[place + draw(st.integers(1, 40)) :]
        elif tokens:
            content = content[:place] + draw(st.sampled_from(tokens)) + content[place:]
    return content


def places(value, path=()):
    """Return the paths of everything inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [place for key, item in inner for place in places(item, (*path, key))]


def put(value, path, odd) -> None:
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = odd


# Config files


@given(data=st.data())
def test_a_config_file(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("config")
    marker = folder / "executed"
    tokens = [*TOKENS, CODE.replace(b"{marker}", str(marker).encode())]
    (folder / "config.yaml").write_bytes(data.draw(changed(QUICKSTART, tokens)))
    try:
        with contextlib.redirect_stderr(io.StringIO()) as stream:
            parse("a test", arguments=["--config", str(folder / "config.yaml")])
    except SystemExit as stopped:
        said = stream.getvalue()
        assert stopped.code == 2 and said.startswith("error: ") and said.count("\n") == 1
    assert [path.name for path in folder.iterdir()] == ["config.yaml"] and not marker.exists()


# Checkpoints


@pytest.fixture(scope="module", params=["exact", "running"])
def finished(request, tiny_timm, tmp_path_factory):
    """A trainer, and the tensors and state of a checkpoint in the middle of its run's last epoch."""
    folder, task = tmp_path_factory.mktemp("finished"), small_task()
    mapping = {"statistics": request.param}
    config = small_config(tiny_timm, folder, mapping=mapping, train={"save_minutes": 1e-9, "keep": 3})
    trained(config, task)
    path = min((folder / "checkpoints").iterdir())
    classifier, accelerator = build_classifier(config, task), Accelerator()
    batches = Batches(task.tensors("train", classifier.resize), accelerator)
    trainer = Trainer(classifier, {"train": batches}, config, accelerator, Progress(False))
    return (trainer, *load_state(path))


def test_a_whole_checkpoint_fits(finished):
    trainer, tensors, values = finished
    trainer.restore(tensors, values["state"])
    assert (trainer.state.epoch, trainer.state.step) == (2, 2)
    again = trainer.tensors()
    assert set(again) == set(tensors)
    assert all(torch.equal(again[name], value) for name, value in tensors.items())


@given(data=st.data())
def test_a_checkpoint_whose_state_was_made_up(data, finished):
    trainer, tensors, values = finished
    state = json.loads(json.dumps(values["state"]))
    if data.draw(st.booleans()):
        put(state, data.draw(st.sampled_from(places(state))), data.draw(st.sampled_from(ODD)))
    elif data.draw(st.booleans()):
        del state[data.draw(st.sampled_from(sorted(state)))]
    else:
        state[data.draw(st.text(max_size=5))] = data.draw(st.sampled_from(ODD))
    try:
        trainer.restore(tensors, state)
    except UserError as error:
        assert str(error).startswith("the checkpoint does not fit this run: ") and "\n" not in str(error)
    else:
        assert trainer.state.epoch == len(trainer.state.history) and 0 <= trainer.state.step <= trainer.steps


@given(data=st.data())
def test_a_checkpoint_whose_tensors_were_made_up(data, finished):
    trainer, tensors, values = finished
    name = data.draw(st.sampled_from(sorted(tensors)))
    shape = tensors[name].shape
    other = data.draw(st.sampled_from([(), (1,), (0,), (3, 1, 1), (*shape, 2), (2, *shape), shape[::-1]]))
    made_up = {**tensors, name: torch.zeros(other, dtype=tensors[name].dtype)}
    kind = data.draw(st.sampled_from(["shape", "gone", "more"]))
    if kind == "gone":
        del made_up[name]
    elif kind == "more":
        made_up = {**tensors, name + data.draw(st.sampled_from(["x", ".x", "/../x"])): tensors[name]}
    if kind == "shape" and other == shape:
        return
    try:
        trainer.restore(made_up, values["state"])
    except UserError as error:
        assert "\n" not in str(error)
    else:  # a sum that is not read, or what an optimiser begins anew
        assert kind != "shape" or name.endswith(".step")


# Saved prompts


@given(data=st.data())
def test_the_weights_of_a_saved_prompt(data, saved_bytes, tmp_path_factory):
    folder, config, weights = saved_bytes
    other = tmp_path_factory.mktemp("changed") / "prompt"
    other.mkdir()
    content = data.draw(changed(weights, [b"\0" * 8, b"{}", b"\xff" * 8, weights[:64]]))
    (other / "config.json").write_bytes(config)
    (other / "model.safetensors").write_bytes(content)
    try:
        _, tensors = read_artifact(other)
    except UserError as error:
        assert "damaged" in str(error) and "\n" not in str(error)
    else:  # a bit of the format's own that carries nothing
        _, whole = read_artifact(folder)
        assert all(torch.equal(tensors[name], whole[name]) for name in {**whole, **tensors})
    assert sorted(path.name for path in other.iterdir()) == ["config.json", "model.safetensors"]
    shutil.rmtree(other.parent)


@given(data=st.data())
def test_the_config_of_a_saved_prompt(data, saved_bytes, tmp_path_factory):
    _, config, weights = saved_bytes
    other = tmp_path_factory.mktemp("changed") / "prompt"
    other.mkdir()
    content = data.draw(changed(config, TOKENS))
    (other / "config.json").write_bytes(content)
    (other / "model.safetensors").write_bytes(weights)
    try:
        PromptedClassifier.from_pretrained(other)
    except UserError as error:
        assert "\n" not in str(error)
    else:  # only white space differs
        assert json.loads(content) == json.loads(config)
    assert sorted(path.name for path in other.iterdir()) == ["config.json", "model.safetensors"]
    shutil.rmtree(other.parent)


@pytest.fixture(scope="module")
def saved_bytes(finished, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prompt")
    finished[0].classifier.save_pretrained(folder)
    return folder, (folder / "config.json").read_bytes(), (folder / "model.safetensors").read_bytes()
