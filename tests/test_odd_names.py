"""Nothing that a name contains ends a run after its training, or changes on the way through its files."""

import json
import os

import pytest
from conftest import coloured_images
from PIL import Image

from clipvp import PromptedClassifier, Task, build_classifier, fit, load_task
from clipvp.artifact.pictures import save_pictures
from clipvp.cli.main import main
from clipvp.config.values import from_dict
from clipvp.results.folder import read_results
from clipvp.results.page import write_page
from clipvp.results.record import summary

NAMES = [
    "\udcff\udce9",  # bytes that are not UTF-8, as os.fsdecode gives them
    "bell \a, escape \x1b[31m, null \0",
    "two\nlines\r\nand\ta tab",
    "$x^{2", "$\\frac{1}$",  # mathtext, damaged and whole
    "a|b | c", "`code` *bold* [link](x)", "# title",
    "<script>alert(1)</script>", "&lt; \"quoted\" 'single'", "</td><!--",
    "{}", "{0} %s %(a)s {name!r}", "\\", "../../up/con.txt",
    "\U0001f600\u200d\U0001f525", "\u202eright to left", "e\u0301\u00e9\ufeff",
    "long " * 200,
    "---\nlicense: mit\n---",
]  # fmt: skip
WRITTEN = ["\ufffd\ufffd", *NAMES[1:]]  # as other tools show bytes that are not UTF-8


@pytest.fixture(scope="module")
def run(tiny_timm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd") / "run"
    values = {"epochs": 1, "batch_size": 20, "progress": False}
    source = {"name": tiny_timm, "canvas": 32}
    config = from_dict({"source": source, "train": values, "output": str(folder)})
    task = Task.from_dataset(coloured_images(40, 20), coloured_images(20, 20), class_names=NAMES)
    model = build_classifier(config, task)
    result = fit(model, task, config)
    return result, model, task


def test_training_ends_with_every_file(run):
    result, model, task = run
    assert len(NAMES) == len(set(NAMES)) == 20
    assert save_pictures(result, model, task) and write_page([result.output], None).exists()
    assert summary(result.results, result.output)
    assert read_results(result.output)["data"]["class_names"] == WRITTEN
    config = json.loads((result.output / "prompt" / "config.json").read_text(encoding="utf-8"))
    assert config["class_names"] == WRITTEN
    page = (result.output / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page and "</td><!--" not in page


def test_the_saved_prompt_is_used_by_every_command(run, capsys, tmp_path):
    folder = run[0].output / "prompt"
    image = tmp_path / os.fsdecode(b"photo \xff\xe9 <b>.png")
    Image.fromarray(coloured_images(1, 3)[0][0]).save(image)
    found = PromptedClassifier.from_pretrained(folder)
    assert found.class_names == WRITTEN
    labels = {row["label"] for row in found.predict(image, top_k=20)[0]}
    assert labels == set(WRITTEN)
    for verb in (["show"], ["map"], ["show", "--json"], ["map", "--json"]):
        main([verb[0], str(folder), *verb[1:]])
    main(["predict", str(folder), str(image), "--top_k", "20"])
    capsys.readouterr()
    main(["predict", str(folder), str(image), "--top_k", "20", "--json"])
    (row,) = json.loads(capsys.readouterr().out)
    assert {prediction["label"] for prediction in row["predictions"]} == labels


def test_a_card_keeps_its_header(run):
    import yaml

    text = (run[0].output / "prompt" / "README.md").read_text(encoding="utf-8")
    header = text.split("---\n")[1]
    assert yaml.safe_load(header)["library_name"] == "clipvp"
    assert "<script>" not in text


def plain(name: str) -> str:
    return name.replace("/", " ").replace("\0", " ").lstrip(".")


def test_folders_with_such_names(tmp_path, tiny_timm):
    """What a file system can hold: everything but the slash and the null."""
    for place, name in enumerate(NAMES[:18]):
        folder = os.path.join(tmp_path / "data", f"{plain(name)}{place}")
        os.makedirs(folder.encode(errors="surrogateescape"))
        for k, (pixels, _) in enumerate(coloured_images(3, 1, seed=place)):
            Image.fromarray(pixels).save(os.path.join(folder, f"{plain(name[:9])}{k}.png"))
    task = load_task(str(tmp_path / "data"))
    assert task.num_classes == 18 and str(task)
    config = from_dict(
        {
            "source": {"name": tiny_timm, "canvas": 32},
            "train": {"epochs": 1, "progress": False},
            "output": str(tmp_path / "run"),
        }
    )
    model = build_classifier(config, task)
    save_pictures(fit(model, task, config), model, task)
    write_page([tmp_path / "run"], None)
    main(["predict", str(tmp_path / "run" / "prompt"), str(tmp_path / "data")])
