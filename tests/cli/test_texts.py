"""``clipvp texts``: counts, what was left out, weights, and classes that are alike."""

import json

import pytest
import yaml
from conftest import trained, write_image_folder

from clipvp.cli import texts
from clipvp.cli.main import main

pytestmark = pytest.mark.filterwarnings("ignore:mapping.texts")
TEXTS = {
    "class0": ["It is red.", "It is red all over.", "It is red but"],
    "class1": ["It is green.", "It is green all over."],
    "class2": ["It is red."],
    "class9": ["It is not there."],
}


@pytest.fixture
def written(tmp_path, tiny_model):
    """The name of a config with a bank of texts, and its values."""
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    values = {
        "source": {"name": tiny_model("open_clip_vit")},
        "mapping": {"kind": "text_counts", "texts": {"des": str(tmp_path / "texts.json")}},
        "data": {"name": str(write_image_folder(tmp_path / "data", {"train": 12, "test": 6}, 3))},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    return str(tmp_path / "run.yaml")


def printed(capsys, *arguments):
    main(["texts", *arguments, "--json"])
    found = json.loads(capsys.readouterr().out)
    main(["texts", *arguments])
    return found, capsys.readouterr().out


def test_the_texts_of_a_config(written, capsys):
    found, text = printed(capsys, written)
    assert [(row["class"], row["texts"], row["groups"]) for row in found["classes"]] == [
        ("class0", 2, {"des": 2}),
        ("class1", 2, {"des": 2}),
        ("class2", 1, {"des": 1}),
    ]
    assert found["left out"] == [{"class_name": "class0", "text": "It is red but", "why": "cut off"}]
    assert found["classes that the task does not have"] == ["class9"]
    assert "texts that are left out: 1" in text and "class9" in text
    pairs = [tuple(pair["classes"]) for pair in found["most alike"]]
    cosines = [pair["cosine"] for pair in found["most alike"]]
    assert sorted(pairs) == [("class0", "class1"), ("class0", "class2"), ("class1", "class2")]
    assert cosines == sorted(cosines, reverse=True) and all(-1 <= cosine <= 1 for cosine in cosines)
    found, _ = printed(capsys, written, "--class", "class1")
    assert [row["text"] for row in found["classes"][0]["all"]] == TEXTS["class1"] and not found["left out"]


def test_the_weights_of_a_prompt(config, tiny_task, tiny_model, tmp_path, capsys):
    run = config(mapping={"kind": "text_counts", "templates": ["a {}.", "the {}.", "{}"], "top_k": 1})
    run.source.name, run.source.canvas = tiny_model("open_clip_vit"), None
    classifier, _ = trained(run, tiny_task)
    found, text = printed(capsys, str(tmp_path / "run" / "prompt"))
    weights = classifier.mapping.weight.view(3, 3).T
    for row, own in zip(found["classes"], weights, strict=True):
        assert row["weight"] == pytest.approx(float(own.max()), abs=1e-5) and row["most weight"] in text
    name = classifier.source.labels.class_names[0]
    found, _ = printed(capsys, str(tmp_path / "run" / "prompt"), "--class", name)
    assert sum(row["weight"] for row in found["classes"][0]["all"]) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    "mapping, said",
    [
        ({"kind": "text_pool", "pool": "mean"}, None),
        ({"kind": "text_pool", "pool": "max"}, "the texts that count are chosen for each image"),
        (
            {"kind": "text_pool", "pool": "top_k_mean", "top_k": 2},
            "the texts that count are chosen for each image",
        ),
        ({"kind": "dga", "levels": 1, "crops": 1}, "how much a text counts differs from image to image"),
    ],
    ids=["mean", "max", "top_k_mean", "dga"],
)
def test_weights_that_depend_on_the_image_are_not_shown(
    mapping, said, config, tiny_task, tiny_model, tmp_path, capsys
):
    views = {"kind": "dga", "levels": 1, "crops": 1, "crop_step": 4} if mapping["kind"] == "dga" else {}
    run = config(
        mapping={**mapping, "templates": ["a {}.", "the {}.", "{}"]}, prompt=views, train={"epochs": 1}
    )
    run.source.name, run.source.canvas = tiny_model("open_clip_vit"), None
    classifier, _ = trained(run, tiny_task)
    found, text = printed(capsys, str(tmp_path / "run" / "prompt"))
    assert found["no weights"] == said and ("most weight" in text) == (said is None)
    assert said is None or text.count(f"weights: none, {said}") == 1
    name = classifier.source.labels.class_names[0]
    [row] = printed(capsys, str(tmp_path / "run" / "prompt"), "--class", name)[0]["classes"]
    assert [text.get("weight") for text in row["all"]] == [
        pytest.approx(1 / 3, abs=1e-5) if said is None else None
    ] * 3


@pytest.mark.filterwarnings("ignore:source .*longer than the model's context")
def test_texts_that_are_too_long_are_listed(written, tmp_path, capsys):
    (tmp_path / "texts.json").write_text(
        json.dumps(TEXTS | {"class1": ["It is green.", "word " * 200 + "."]})
    )
    found, text = printed(capsys, written)
    assert [(text["class_name"], text["why"]) for text in found["left out"]] == [
        ("class0", "cut off"),
        ("class1", "longer than the model's context"),
    ]
    assert "texts that are left out: 2" in text


def test_a_config_of_the_package_by_its_name(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(texts, "_of_config", lambda name: pytest.fail(name))
    for name in ("clip_quickstart", "few_shot/clip_vit_b16", "methods/attr_vr", "a.yaml"):
        with pytest.raises(pytest.fail.Exception, match=f"^{name}$"):
            main(["texts", name])
    (tmp_path / "clip_quickstart").mkdir()  # a folder comes first
    with pytest.raises(SystemExit):
        main(["texts", "clip_quickstart"])
    assert "'clip_quickstart' is not a saved prompt" in capsys.readouterr().err


def test_wrong_names_are_one_line(written, tiny_timm, tmp_path, capsys):
    values = yaml.safe_load((tmp_path / "run.yaml").read_text()) | {
        "source": {"name": tiny_timm, "canvas": 32},
        "mapping": {"kind": "blm"},
    }
    (tmp_path / "closed.yaml").write_text(yaml.safe_dump(values))
    for arguments, words in (
        ([str(tmp_path / "closed.yaml")], "closed label set and no texts"),
        ([str(tmp_path / "no.yaml")], "no.yaml"),
        ([written, "--class", "clas1"], "did you mean 'class1'"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["texts", *arguments])
        err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
        assert end.value.code == 2 and len(err) == 1 and words in err[0]
