"""Checkpoints of open_clip by file: what open_clip itself loads, named publicly without the path."""

import json
import os
import warnings
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import _spread

from clipvp import PromptedClassifier, UserError, load_source
from clipvp.mappings.random import RandomMapping
from clipvp.prompts.padding import PaddingPrompt
from clipvp.sources.origin import is_local, origin, public_name

CLASSES = ["cat", "dog", "ship"]
SHAPE = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}


@pytest.fixture(scope="module", autouse=True)
def architectures(tmp_path_factory):
    """Add two small architectures to open_clip's own: tiny, and tiny-quickgelu."""
    import open_clip
    from open_clip import factory

    folder = tmp_path_factory.mktemp("configs")
    (folder / "tiny.json").write_text(json.dumps(SHAPE))
    (folder / "tiny-quickgelu.json").write_text(json.dumps({**SHAPE, "quick_gelu": True}))
    open_clip.add_model_config(folder)
    yield
    factory._MODEL_CONFIG_PATHS.remove(folder)
    del factory._MODEL_CONFIGS["tiny"], factory._MODEL_CONFIGS["tiny-quickgelu"]


@pytest.fixture(scope="module")
def model():
    import open_clip

    return _spread(open_clip.create_model("tiny"), 0)


def training(state: dict) -> dict:
    """Return what open_clip's training saves from many processes."""
    prefixed = {f"module.{key}": value for key, value in state.items()}
    return {
        "epoch": 1,
        "name": "run",
        "state_dict": prefixed,
        "optimizer": {"state": {}, "param_groups": [{}]},
    }


WRITERS = {
    "epoch_1.pt": lambda state, path: torch.save(training(state), path),
    "plain.pt": torch.save,
    "bytes.safetensors": save_file,
    "checkpoint": torch.save,
}


@pytest.fixture(params=WRITERS)
def checkpoint(request, model, tmp_path) -> Path:
    WRITERS[request.param](model.state_dict(), tmp_path / request.param)
    return tmp_path / request.param


def load(name: str, **options):
    return load_source(name, class_names=CLASSES, templates=["a {}."], **options)


def saved(state: dict, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(training(state), path)
    return path


def test_a_checkpoint_gives_open_clips_own_logits(checkpoint, model):
    import open_clip

    theirs = open_clip.create_model("tiny", pretrained=str(checkpoint)).eval()
    tokens = open_clip.get_tokenizer("tiny")([f"a {name}." for name in CLASSES])
    source = load(f"open_clip:tiny/{checkpoint}")
    pixels = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        image = theirs.encode_image(source.normalize(pixels), normalize=True)
        expected = theirs.logit_scale.exp() * image @ theirs.encode_text(tokens, normalize=True).T
        torch.testing.assert_close(source(pixels), expected, rtol=1e-4, atol=1e-5)
    assert list(source.preprocessing.mean) == list(theirs.visual.preprocess_cfg["mean"])
    assert load(f"open_clip:tiny/{checkpoint}", canvas=48)(torch.rand(1, 3, 48, 48)).isfinite().all()


def test_relative_paths_and_the_home_folder_are_the_same_file(model, tmp_path, monkeypatch):
    path = saved(model.state_dict(), tmp_path / "home" / "runs" / "epoch_1.pt")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(path.parent)
    sources = [
        load(f"open_clip:tiny/{name}") for name in (path, "epoch_1.pt", "./epoch_1.pt", "~/runs/epoch_1.pt")
    ]
    assert len({source.fingerprint for source in sources}) == 1
    assert sources[-1].name == f"open_clip:tiny/{path}"


@pytest.mark.parametrize("scheme", ["timm:local-dir:", "hf:", "open_clip:local-dir:"])
def test_a_folder_may_begin_with_the_home_folder(scheme, tiny_model, monkeypatch):
    kind = {"timm": "timm_classifier", "hf": "hf_classifier", "open_clip": "open_clip_vit"}[
        scheme.partition(":")[0]
    ]
    folder = Path(tiny_model(kind).rpartition(":")[2])
    monkeypatch.setenv("HOME", str(folder.parent))
    texts = {"class_names": CLASSES} if scheme.startswith("open") else {}
    source = load_source(f"{scheme}~/{folder.name}", **texts)
    assert source.name == f"{scheme}{folder}"
    assert source.fingerprint == load_source(f"{scheme}{folder}", **texts).fingerprint
    assert is_local(f"{scheme}~/{folder.name}")
    assert public_name(f"{scheme}~/{folder.name}") == public_name(f"{scheme}{folder}")
    with pytest.raises(UserError, match=f"{folder.parent}/nothing"):
        load_source(f"{scheme}~/nothing", **texts)


def test_a_saved_prompt_names_the_file_and_takes_another_place_of_it(model, tmp_path):
    path = saved(model.state_dict(), tmp_path / "secret" / "epoch_1.pt")
    source = load(f"open_clip:tiny/{path}")
    prompt = PaddingPrompt(source.canvas, (16, 16))
    classifier = PromptedClassifier(prompt, source, RandomMapping(3, 3), CLASSES).eval()
    classifier.save_pretrained(tmp_path / "prompt")
    card = (tmp_path / "prompt" / "README.md").read_text()
    assert "open_clip:tiny/./epoch_1.pt" in card and "secret" not in card
    path.rename(tmp_path / "other.pt")
    with pytest.raises(UserError, match="there is no file .*epoch_1.pt'; if the model is in another folder"):
        PromptedClassifier.from_pretrained(tmp_path / "prompt")
    again = PromptedClassifier.from_pretrained(
        tmp_path / "prompt", source=f"open_clip:tiny/{tmp_path}/other.pt"
    )
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(again(images), classifier(images))


@pytest.mark.parametrize(
    "name, public",
    [
        ("open_clip:ViT-B-32//home/me/logs/epoch_1.pt", "open_clip:ViT-B-32/./epoch_1.pt"),
        ("open_clip:ViT-B-32/~/checkpoint", "open_clip:ViT-B-32/./checkpoint"),
        ("open_clip:ViT-B-32/epoch_1.pt", "open_clip:ViT-B-32/./epoch_1.pt"),
        ("timm:local-dir:~/nets/mine", "timm:local-dir:mine"),
        ("hf:~/nets/mine", "hf:./mine"),
        ("open_clip:ViT-B-32/openai", None),
        ("open_clip:hf-hub:laion/CLIP-ViT-B-32.v1", None),
        ("timm:hf-hub:someone/net.v1", None),
    ],
)
def test_a_file_is_told_by_its_own_name_alone(name, public, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "openai").touch()  # a tag comes before a file of the same name
    assert public_name(name) == (public or name) and is_local(name) == (public is not None)
    assert is_local(public_name(name)) == is_local(name) and public_name(public_name(name)) == public_name(
        name
    )
    if public:
        assert origin(name) == (None, None)


def test_no_tag_of_open_clip_looks_like_a_file():
    import open_clip

    names = [f"open_clip:{model}/{tag}" for model, tag in open_clip.list_pretrained()]
    assert len(names) > 100 and not any(map(is_local, names))


# Files that are wrong


def spoil(path: Path, kind: str, state: dict) -> None:
    key = "visual.proj"
    contents = {
        "another shape": {**state, key: torch.zeros(3, 3)},
        "weights missing": {name: value for name, value in state.items() if name != key},
        "other weights": {**state, "more": torch.zeros(3)},
        "a list": [1, 2],
        "nothing": {},
        "numbers": {1: 2},
        "no tensors": {"state_dict": None},
        "python objects": {"state_dict": state, "args": Namespace(lr=1)},
    }
    if kind in contents:
        torch.save(contents[kind], path)
    elif kind == "cut":
        torch.save(state, path)
        path.write_bytes(path.read_bytes()[:-5000])
    elif kind == "script":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(path)
    else:
        path.write_bytes({"text": b"hello world\n" * 99, "noise": b"\0noise" * 99, "empty": b""}[kind])


@pytest.mark.parametrize(
    "kind, words",
    [
        ("another shape", "size mismatch for visual.proj"),
        ("weights missing", "Missing key.*visual.proj"),
        ("other weights", "Unexpected key.*more"),
        ("a list", "no state dict of an open_clip model"),
        ("nothing", "no state dict of an open_clip model"),
        ("numbers", "no state dict of an open_clip model"),
        ("no tensors", "no state dict of an open_clip model"),
        ("python objects", "holds Python objects.*argparse.Namespace"),
        ("script", "TorchScript"),
        ("cut", "a weight file is damaged"),
        ("text", "no state dict of an open_clip model"),
        ("noise", r"a weight file is damaged \(Unsupported operand 0\)"),
        ("empty", "a weight file is damaged"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(kind, words, model, tmp_path):
    spoil(tmp_path / "a.pt", kind, model.state_dict())
    with pytest.raises(UserError, match=words) as error:
        load(f"open_clip:tiny/{tmp_path}/a.pt")
    message = str(error.value)
    assert "\n" not in message and str(tmp_path) in message and len(message) < 600, message


def test_a_damaged_safetensors_file_is_one_line(model, tmp_path):
    path = tmp_path / "a.safetensors"
    save_file(model.state_dict(), path)
    os.truncate(path, path.stat().st_size - 100)
    with pytest.raises(UserError, match="a weight file is damaged"):
        load(f"open_clip:tiny/{path}")


@pytest.mark.parametrize(
    "name, words",
    [
        (
            "open_clip:local-dir:{0}/a.pt",
            "is a file; name it with its architecture, .* open_clip:ViT-B-32/{0}/a.pt$",
        ),
        ("open_clip:{0}/a.pt", "name the file with its architecture, such as open_clip:ViT-B-32/{0}/a.pt$"),
        ("open_clip:tny/{0}/a.pt", "no 'tny'; did you mean 'tiny'"),
        ("open_clip:tiny/{0}/b.pt", "there is no file '{0}/b.pt'$"),
        ("open_clip:tiny/{0}", "there is no file '{0}'$"),
        ("timm:local-dir:{0}/a.pt", "is a file; timm:local-dir: takes a folder"),
        ("hf:{0}/a.pt", "there is no folder '{0}/a.pt'; hf: takes a folder or ORG/NAME$"),
    ],
)
def test_a_file_that_is_named_otherwise_gets_the_right_form(name, words, tmp_path):
    (tmp_path / "a.pt").touch()
    with pytest.raises(UserError, match=words.format(tmp_path)) as error:
        load(name.format(tmp_path))
    assert "\n" not in str(error.value)


def test_a_file_takes_no_revision(model, tmp_path):
    path = saved(model.state_dict(), tmp_path / "a.pt")
    with pytest.raises(UserError, match="names its weights by tag or file"):
        load(f"open_clip:tiny/{path}", revision="main")


@pytest.mark.parametrize(
    "architecture, parameters, other",
    [
        ("tiny", "model: tiny-quickgelu\nforce_quick_gelu: False\n", "tiny-quickgelu"),
        ("tiny", "force_quick_gelu: True\nmodel: tiny\n", "tiny-quickgelu"),
        ("tiny-quickgelu", "force_quick_gelu: False\nmodel: tiny\n", "tiny"),
        ("tiny", "force_quick_gelu: False\nmodel: tiny\n", None),
        ("tiny-quickgelu", "model: tiny-quickgelu\n", None),
        ("tiny", "model: something else\n", None),
        ("tiny-quickgelu", "no parameters", None),
        ("tiny", None, None),
    ],
)
def test_the_activation_is_that_of_the_training_where_its_parameters_are_known(
    architecture, parameters, other, model, tmp_path
):
    path = saved(model.state_dict(), tmp_path / "run" / "checkpoints" / "epoch_1.pt")
    if parameters is not None:
        (tmp_path / "run" / "params.txt").write_text(parameters)
    if other is None:
        load(f"open_clip:{architecture}/{path}")
    else:
        with pytest.raises(UserError, match=f"QuickGELU.*use open_clip:{other}/{path}$"):
            load(f"open_clip:{architecture}/{path}")
