"""Predicting: whatever people hand over, one broken image among many, and any default type of torch."""

import io
import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import coloured_images, photo
from PIL import Image
from test_model import NAMES, Linear, made

from clipvp import PromptedClassifier, Task
from clipvp.cli.main import main
from clipvp.config.schema import DataConfig
from clipvp.images import ImageError, ImageWarning, Reading, to_rgb
from clipvp.registry import UserError


def test_predict_takes_any_image_and_gives_softmax_scores(tiny_timm, tmp_path):
    classifier, image = made(tiny_timm), photo(30, 40)
    path, encoded = tmp_path / "a.png", io.BytesIO()
    image.save(path)
    image.save(encoded, "PNG")
    array = np.asarray(image)
    ways = [path, str(path), encoded.getvalue(), bytearray(encoded.getvalue()), image, array]
    ways += [array.transpose(2, 0, 1), torch.from_numpy(array.copy())]
    pixels = torch.from_numpy(classifier.resize(to_rgb(image))).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        scores = classifier(pixels).softmax(1)[0]
    order = scores.argsort(descending=True).tolist()
    for way in ways:
        (rows,) = classifier.predict(way)
        assert [row["label"] for row in rows] == [NAMES[c] for c in order]
        assert [row["score"] for row in rows] == pytest.approx(scores[order].tolist(), abs=1e-5)
        index = classifier.mapping.source_index.tolist()
        assert [row["source_label"] for row in rows] == [
            classifier.source.labels.names[index[c]] for c in order
        ]


def test_predict_does_not_depend_on_the_batch(tiny_timm):
    classifier = made(tiny_timm)
    images = [photo(20, 25, seed) for seed in range(5)]
    together = classifier.predict(images, batch_size=2, top_k=2)
    assert len(together) == 5 and all(len(rows) == 2 for rows in together)
    for rows, image in zip(together, images, strict=True):
        (alone,) = classifier.predict(image, top_k=2)
        assert [row["label"] for row in alone] == [row["label"] for row in rows]
        assert [row["score"] for row in alone] == pytest.approx([row["score"] for row in rows], abs=1e-5)
    batch = np.stack([np.asarray(image) for image in images])
    assert [rows[0]["label"] for rows in classifier.predict(batch)] == [rows[0]["label"] for rows in together]
    assert len(classifier.predict(iter(images))) == 5 and classifier.predict([]) == []


@pytest.mark.parametrize("top_k", [1, 2, 3, 9])
def test_predict_without_source_labels_gives_none(top_k, tiny_timm):
    plain = made(tiny_timm)
    classifier = PromptedClassifier(plain.prompt, plain.source, Linear(20, 3, "logits"), NAMES).eval()
    (rows,) = classifier.predict(photo(30, 40), top_k=top_k)
    assert len(rows) == min(top_k, 3) and all(row["source_label"] is None for row in rows)
    pixels = torch.from_numpy(classifier.resize(to_rgb(photo(30, 40)))).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        scores = classifier(pixels).softmax(1)[0].sort(descending=True)
    assert [row["label"] for row in rows] == [NAMES[c] for c in scores.indices[:top_k]]
    assert [row["score"] for row in rows] == pytest.approx(scores.values[:top_k].tolist(), abs=1e-5)


def test_predict_names_what_is_not_an_image(tiny_timm):
    with pytest.raises(ImageError, match="no/such.png"):
        made(tiny_timm).predict(["no/such.png"])


@pytest.fixture(scope="module")
def classifier(tiny_timm):
    return made(tiny_timm)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Three images and a text, in a folder that is also the home."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "photos" / "deeper").mkdir(parents=True)
    paths = [tmp_path / "photos" / name for name in ("a.png", "b 1.png", "deeper/c.jpg")]
    for seed, path in enumerate(paths):
        photo(20, 25, seed).save(path)
    (tmp_path / "photos" / "notes.txt").write_text("not an image")
    yield paths
    while OPENED:
        OPENED.pop().close()


OPENED = []


def opened(path: Path):
    OPENED.append(open(path, "rb"))  # noqa: SIM115, the fixture closes it
    return OPENED[-1]


MANY = {
    "list of paths": lambda paths: paths,
    "list of texts": lambda paths: [str(path) for path in paths],
    "tuple": tuple,
    "set of one order": lambda paths: dict.fromkeys(paths).keys(),
    "generator": iter,
    "Series": pd.Series,
    "Series of texts": lambda paths: pd.Series([str(path) for path in paths], index=[7, 8, 9]),
    "column of a table": lambda paths: pd.DataFrame({"path": [str(path) for path in paths]})["path"],
    "pandas' own texts": lambda paths: pd.Series([str(path) for path in paths], dtype="string"),
    "array of paths": lambda paths: np.array(paths, object),
    "array of texts": lambda paths: np.array([str(path) for path in paths]),
    "map": lambda paths: map(Image.open, paths),
    "open files": lambda paths: [opened(path) for path in paths],
    "bytes in memory": lambda paths: [io.BytesIO(path.read_bytes()) for path in paths],
    "memory views": lambda paths: [memoryview(path.read_bytes()) for path in paths],
    "PIL images": lambda paths: [Image.open(path) for path in paths],
    "arrays": lambda paths: [np.asarray(Image.open(path)) for path in paths],
    "array of equal images": lambda paths: np.stack([np.asarray(Image.open(path)) for path in paths]),
    "tensors": lambda paths: [torch.tensor(np.array(Image.open(path))) for path in paths],
    "folder": lambda paths: paths[0].parent,
    "folder as text": lambda paths: str(paths[0].parent) + "/",
    "folder in a list": lambda paths: [paths[0].parent],
    "pattern": lambda paths: str(paths[0].parent / "**" / "*.[pj][np]g"),
    "home": lambda paths: "~/photos",
    "patterns in a list": lambda paths: ["~/photos/*.png", "~/photos/deeper/*"],
    "a mixture": lambda paths: [Image.open(paths[0]), str(paths[1]), paths[2].parent],
}


@pytest.mark.parametrize("way", MANY)
def test_many_images_in_whatever_holds_them(way, classifier, photos):
    expected = [classifier.predict(path)[0] for path in photos]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the files that this test leaves open
        got = classifier.predict(MANY[way](photos))
    for rows, alone in zip(got, expected, strict=True):
        assert [row["label"] for row in rows] == [row["label"] for row in alone]
        assert [row["score"] for row in rows] == pytest.approx([row["score"] for row in alone], abs=1e-5)


ONE = {
    "open file": lambda path: opened(path),
    "bytes": lambda path: path.read_bytes(),
    "Series of one": lambda path: pd.Series([path]),
    "text of numpy": lambda path: np.array(str(path)).item(),
    "file named as a pattern": lambda path: path.rename(path.with_name("a[1]*.png")),
}


@pytest.mark.parametrize("way", ONE)
def test_one_image(way, classifier, photos):
    expected = classifier.predict(photos[0])
    assert classifier.predict(ONE[way](photos[0])) == expected


@pytest.mark.parametrize(
    "images, words",
    [
        ("{}/empty", "the folder holds no images"),
        ("{}/*.gif", "no file fits this pattern"),
        (["{}/a.png", "{}/none.png"], "none.png: cannot be read as an image: No such file"),
        ([None], "NoneType is not an image"),
        (7, "int is not an image"),
        ({"a": 1}, "a: cannot be read as an image: No such file"),
    ],
)
def test_what_is_no_image_is_one_line(images, words, classifier, photos):
    folder = str(photos[0].parent)
    (photos[0].parent / "empty").mkdir()
    if isinstance(images, (str, list)):
        images = json.loads(json.dumps(images).replace("{}", folder))
    with pytest.raises(UserError) as error:
        classifier.predict(images)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("option", [{"top_k": 0}, {"top_k": -1}, {"batch_size": 0}, {"on_error": "ignore"}])
def test_options_out_of_range_are_one_line(option, classifier, photos):
    with pytest.raises(UserError, match=f"^{next(iter(option))}: "):
        classifier.predict(photos, **option)


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_a_broken_image_loses_no_other(batch_size, classifier, photos):
    expected = [classifier.predict(path)[0] for path in photos]
    broken = photos[0].with_name("broken.png")
    broken.write_bytes(photos[0].read_bytes()[:90])
    got = classifier.predict([broken, *photos, broken], batch_size=batch_size, on_error="skip")
    assert [isinstance(rows, ImageError) for rows in got] == [True, False, False, False, True]
    for rows, alone in zip(got[1:4], expected, strict=True):
        assert [row["score"] for row in rows] == pytest.approx([row["score"] for row in alone], abs=1e-5)
    with pytest.raises(ImageError, match="broken.png"):
        classifier.predict([*photos, broken])


def test_the_command_says_which_image_is_broken(classifier, photos, tmp_path, capsys):
    classifier.save_pretrained(tmp_path / "prompt")
    photos[1].write_bytes(b"no image")
    command = ["predict", str(tmp_path / "prompt"), str(photos[0].parent)]
    for form in ([], ["--json"]):
        with pytest.raises(SystemExit) as ended:
            main([*command, "--on_error", "skip", *form])
        out, err = capsys.readouterr()
        assert ended.value.code == 2 and "1 of 3 images cannot be read" in err and "b 1.png" in err
        assert "a.png" in out and "c.jpg" in out and "cannot be read" in out
        with pytest.raises(SystemExit) as ended:
            main([*command, *form])
        out, err = capsys.readouterr()
        assert ended.value.code == 2 and out == "" and "b 1.png: cannot be read" in err


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.float16])
def test_the_default_type_of_torch_changes_nothing(kind, tiny_timm, tiny_model, photos, tmp_path):
    def train_and_predict(where: Path):
        from clipvp import build_classifier, fit, load_source
        from clipvp.config.values import from_dict

        values = {"train": {"epochs": 1, "batch_size": 6, "progress": False}, "output": str(where / "run")}
        data = Task.from_dataset(coloured_images(6, 3), coloured_images(3, 3), class_names=NAMES)
        config = from_dict({"source": {"name": tiny_timm, "canvas": 32}, **values})
        model = build_classifier(config, data)
        scores = fit(model, data, config).test["last"].to_dict()
        clip = load_source(
            tiny_model("open_clip_vit"), class_names=["cat", "dog"], templates="a photo of a {}."
        )
        tensors = [*model.state_dict().values(), *clip.state_dict().values()]
        loaded = PromptedClassifier.from_pretrained(where / "run" / "prompt")
        return scores, tensors, model.predict(photos), loaded.predict(photos)

    expected = train_and_predict(tmp_path / "usual")
    torch.set_default_dtype(kind)
    try:
        got = train_and_predict(tmp_path / "changed")
        assert torch.get_default_dtype() == kind
    finally:
        torch.set_default_dtype(torch.float32)
    assert got[0] == expected[0] and got[2] == expected[2] and got[3] == expected[3]
    for one, other in zip(got[1], expected[1], strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)


# What the files do not say


def test_bits_and_background_go_from_the_data_into_the_prompt(tiny_timm, tmp_path):
    """Trained on scans of 12 bits and on 8-bit images that say the same, a prompt predicts the same."""
    from clipvp import build_classifier, fit
    from clipvp.config.values import from_dict

    eight = [(np.asarray(image)[..., :1].repeat(3, -1), label) for image, label in coloured_images(6, 3)]
    twelve = [
        ((pixels[..., 0].astype(int) * 4095 // 255).astype(np.uint16), label) for pixels, label in eight
    ]
    clear = [
        (np.dstack([pixels * 0, 255 - pixels[..., 0]]), label) for pixels, label in eight
    ]  # black on white
    runs = {}
    for name, data in {
        "eight": {},
        "twelve": {"bits": 12},
        "clear": {"background": "#ffffff"},
    }.items():
        images = {"eight": eight, "twelve": twelve, "clear": clear}[name]
        values = {"train": {"epochs": 2, "batch_size": 6, "progress": False}, "output": str(tmp_path / name)}
        config = from_dict({"source": {"name": tiny_timm, "canvas": 32}, "data": data, **values})
        task = Task.from_dataset(images, images, class_names=NAMES, config=config.data)
        model = build_classifier(config, task)
        fit(model, task, config)
        loaded = PromptedClassifier.from_pretrained(tmp_path / name / "prompt")
        assert loaded.reading == model.reading == Reading(**data)
        runs[name] = [loaded.predict([image for image, _ in images]), model.resize, loaded.resize]
    assert runs["eight"][0] == runs["twelve"][0] == runs["clear"][0]
    assert runs["twelve"][1] == runs["twelve"][2] and runs["twelve"][1] != runs["eight"][1]


def test_notices_are_counted_each_time(tiny_timm, tmp_path):
    """Also where the pixels come from the cache."""
    for label, name in enumerate(NAMES):
        (tmp_path / "data" / name).mkdir(parents=True)
        for k in range(5):
            image = np.dstack(
                [np.full((9, 9, 3), 60 * label + k, np.uint8), np.full((9, 9), 255 * (k > 2), np.uint8)]
            )
            Image.fromarray(image).save(tmp_path / "data" / name / f"{k}.png")
    from clipvp import load_task

    resize = made(tiny_timm).resize
    config = {"name": str(tmp_path / "data"), "cache_dir": str(tmp_path / "cache")}
    for _ in range(2):
        with pytest.warns(ImageWarning, match="9 of 15 images: transparent pixels .*data.background") as told:
            load_task(DataConfig(**config), test_set=True).tensors("test", resize, progress=False)
        assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        task = load_task(DataConfig(**config, background="black"), test_set=True)
        task.tensors("test", resize, progress=False)
        some = task.test.subset(np.flatnonzero(np.arange(15) % 5 > 2))
        some.tensors(resize, cache_dir=tmp_path / "cache", progress=False)


@pytest.mark.parametrize("reading", [{"bits": 0}, {"bits": "12"}, {"background": "whit"}, {"depth": 3}])
def test_a_damaged_reading_is_refused(reading, classifier, tmp_path):
    from clipvp.artifact.format import read_artifact, write_artifact

    classifier.save_pretrained(tmp_path)
    config, tensors = read_artifact(tmp_path)
    config["preprocessing"]["resize"]["reading"] = reading
    write_artifact(tmp_path, config, tensors)
    with pytest.raises(UserError, match="preprocessing.resize.reading"):
        PromptedClassifier.from_pretrained(tmp_path)


def test_a_prediction_follows_the_mapping_as_it_is(tiny_model, photos):
    """The folded mapping that predict keeps is made anew when the mapping changes, and is no part of the state."""
    from clipvp import load_source
    from clipvp.mappings.text_mixing import TextMixingMapping
    from clipvp.prompts.none import NoPrompt

    source = load_source(tiny_model("open_clip_vit"), class_names=NAMES, templates=["a {}.", "the {}."])
    model = PromptedClassifier(NoPrompt(source.canvas), source, TextMixingMapping(6, 3), NAMES).eval()
    before = model.predict(photos)
    assert model.predict(photos) == before
    with torch.no_grad():
        model.mapping.mixing.copy_(3 * torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))
        images = torch.stack([torch.from_numpy(model.resize.read(path)) for path in photos])
        expected = model(images.permute(0, 3, 1, 2) / 255).softmax(1).max(1).values
    after = model.predict(photos)
    assert [rows[0]["score"] for rows in after] == pytest.approx(
        expected.tolist(), abs=1e-5
    ) and after != before
    assert not any("fold" in name for name in model.state_dict())
