"""AReS: the distilled head is near its teacher, is a source, and the recipe asks each training image once."""

import json

import pytest
import torch
import yaml
from conftest import write_image_folder
from test_recipes import run  # noqa: F401, a fixture

from clipvp import PromptedClassifier, UserError, load_source
from clipvp.files import save_state
from clipvp.sources.distilled import save_distilled
from clipvp.training.distil import distil


def problem():
    """Return features of very different scales, and the answers of a layer on them."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(300, 6, generator=generator) * torch.tensor([0.01, 0.1, 1, 1, 10, 100]) + 3
    inputs = (features - features.mean(0)) / features.std(0)
    return features, (inputs @ torch.randn(6, 4, generator=generator)).softmax(1)


def test_a_layer_that_can_be_distilled_is_found():
    features, answers = problem()
    weight, bias, left = distil(features, answers, epochs=60, lr=0.03, weight_decay=0.0)
    found = (features @ weight.T + bias).softmax(1)
    divergence = (answers * (answers / found).log()).sum(1).mean()
    assert left == pytest.approx(float(divergence), abs=1e-4) and left < 1e-3
    again = distil(features, answers, epochs=60, lr=0.03, weight_decay=0.0)
    assert torch.equal(again[0], weight) and torch.equal(again[1], bias)
    assert distil(features, answers, epochs=1, lr=0.03)[2] > 20 * left


def test_a_distilled_source_scores_the_heads_labels(tiny_timm, tmp_path):
    inner = load_source(tiny_timm, canvas=32)
    weight = torch.randn(5, inner.num_features, generator=torch.Generator().manual_seed(1))
    bias, labels = torch.arange(5.0), list("abcde")
    name = save_distilled(tmp_path / "head", inner, weight, bias, labels, "http://127.0.0.1:1")
    source = load_source(name, canvas=32)
    pixels = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = inner.encode(pixels) @ weight.T + bias
        torch.testing.assert_close(source(pixels), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(source.encode(pixels), inner.encode(pixels))
    assert source.labels.names == tuple(labels) and source.fingerprint != inner.fingerprint
    assert source.gives_gradient
    save_state(tmp_path / "head" / "head.safetensors", {"weight": weight[:, :3], "bias": bias}, {})
    with pytest.raises(UserError, match="its head takes 3 features, and .* gives "):
        load_source(name)
    for wrong in ({"weight": weight, "bias": bias[:2]}, {"weight": weight[:, 0], "bias": bias}):
        save_state(tmp_path / "head" / "head.safetensors", wrong, {})
        with pytest.raises(UserError, match="its files do not fit together"):
            load_source(name)
    (tmp_path / "head" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="is no distilled source"):
        load_source(name)


@pytest.mark.filterwarnings("ignore:source.precision")
def test_the_recipe_asks_once(run, tiny_timm, tiny_hf, tmp_path, capsys):  # noqa: F811
    folder = write_image_folder(tmp_path / "images", {"train": 24, "val": 9, "test": 15}, 3)
    options = {"source.name": tiny_timm, "source.canvas": 32, "data.name": folder, "prompt.image_size": 16}
    options |= {"train.epochs": 2, "train.batch_size": 8, "train.progress": "false", "service": tiny_hf}
    options |= {"source.precision": "bf16", "source.local_files_only": "true"}
    options |= {
        "distil_epochs": 5,
        "output": "ares",
        "ask_tests": "true",
        "service_options": '{"canvas": 32}',
    }
    printed = run("ares", *(f"--{key}={value}" for key, value in options.items()))
    found = json.loads((tmp_path / "ares" / "ares.json").read_text())
    assert found["asked"] == 24 and found["runs"].keys() == {"ares", "linear_probe", "on_answers"}
    rows = {
        line.split()[0]: line.split()[-1] for line in printed.splitlines() if line[:1] in "alo" and line[1:]
    }
    assert (rows["ares"], rows["linear_probe"], rows["on_answers"]) == ("24", "0", "48")
    for line in (
        "linear layer on the local source's features; needs",
        "linear layer on the service's answers; asks",
    ):
        assert line in printed
    # The second stage has the local source's settings.
    second = yaml.safe_load((tmp_path / "ares" / "ares" / "config.yaml").read_text())["source"]
    assert second["name"] == "distilled:ares/distilled" and second["canvas"] == 32
    assert second["precision"] == "bf16" and second["local_files_only"] is True
    prompt = PromptedClassifier.from_pretrained(tmp_path / "ares" / "ares" / "prompt")
    assert len(prompt.source.labels) == 7 and prompt.source.name == "distilled:ares/distilled"

    # A limit on what the service is asked about is held before it is asked.
    with pytest.raises(SystemExit) as stopped:
        limited = {**options, "output": "limited", "train.max_queries": 47}
        run("ares", *(f"--{key}={value}" for key, value in limited.items()))
    assert (
        stopped.value.code == 2 and "47 does not allow this run: it asks about 48" in capsys.readouterr().err
    )
    run("ares", *(f"--{key}={value}" for key, value in {**limited, "train.max_queries": 48}.items()))

    # A run that is there is left alone, with its head, and nothing is asked for it.
    head = (tmp_path / "ares" / "distilled" / "head.safetensors").read_bytes()
    with pytest.raises(SystemExit) as stopped:
        run("ares", *(f"--{key}={value}" for key, value in (options | {"distil_epochs": 6}).items()))
    assert stopped.value.code == 2 and "holds a run already" in capsys.readouterr().err
    assert (tmp_path / "ares" / "distilled" / "head.safetensors").read_bytes() == head


def test_a_local_source_without_a_last_layer_is_refused_before_the_service_is_asked(
    run,  # noqa: F811
    tiny_model,
    tiny_hf,
    tmp_path,
    capsys,
    monkeypatch,
):
    folder = write_image_folder(tmp_path / "images", {"train": 24, "val": 9, "test": 15}, 3)
    options = {"source.name": tiny_model("open_clip_vit"), "data.name": folder, "service": tiny_hf}
    monkeypatch.setattr("clipvp.training.outputs.with_outputs", lambda *given, **more: pytest.fail("asked"))
    with pytest.raises(SystemExit) as stopped:
        run("ares", *(f"--{key}={value}" for key, value in options.items()))
    assert stopped.value.code == 2 and "does not end in a linear layer" in capsys.readouterr().err


def test_a_missing_service_is_named(run, capsys):  # noqa: F811
    with pytest.raises(SystemExit) as stopped:
        run("ares")
    assert stopped.value.code == 2 and "--service is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    "given, message",
    [
        ("{name: x}", "name is 'x'; give the service's name as --service"),
        ("{per_secnd: 5}", "unknown key 'source.per_secnd'; did you mean 'source.per_second'"),
        ("{per_second: often}", "per_second"),
        ("{1: 2}", "unknown key 'source.1'"),
    ],
)
def test_wrong_options_of_the_service_are_one_line(given, message, run, capsys):  # noqa: F811
    with pytest.raises(SystemExit) as stopped:
        run("ares", "--service=http://127.0.0.1:1", f"--service_options={given}")
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1
    assert "--service_options: " in error and message in error
