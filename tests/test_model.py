"""The prompted classifier is prompt, then source, then mapping; what is saved is what is loaded, or an error."""

import copy
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import photo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import clipvp.artifact.save
from clipvp import PromptedClassifier, UserError, build_classifier, load_source
from clipvp.config.values import from_dict
from clipvp.images import ImageError, to_rgb
from clipvp.mappings.base import RandomMapping
from clipvp.prompts.base import PaddingPrompt

NAMES = ["red thing", "Grün", "青"]
PROMPTS = {
    "padding": {"kind": "padding", "image_size": 17},
    "border": {"kind": "border", "width": 5, "space": "normalized"},
    "patch": {"kind": "patch", "patch_size": 9, "patch_position": [3, 4], "clip": True},
    "full": {"kind": "full"},
    "none": {"kind": "none"},
}


def made(source: str, prompt: str = "padding", mapping: str = "frequency", **options) -> PromptedClassifier:
    """Return a classifier with something learned in it."""
    values = {
        "source": {"name": source, "canvas": 32},
        "prompt": PROMPTS[prompt],
        "mapping": {"kind": mapping},
    }
    classifier = build_classifier(from_dict({**values, **options}), NAMES)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        classifier.prompt.delta.copy_(torch.randn(classifier.prompt.delta.shape, generator=generator))
    if classifier.mapping.due(0):
        counts = torch.randint(0, 9, (len(classifier.source.labels), 3), generator=generator)
        classifier.mapping.fit(counts)
    return classifier.eval()


def images_for(classifier, count: int = 4) -> torch.Tensor:
    return torch.rand(count, 3, *classifier.resize.size, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def saved(tiny_timm, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "prompt"
    made(tiny_timm).save_pretrained(folder)
    return folder


@pytest.fixture
def one_source(tiny_timm, monkeypatch):
    """Load the source once, so that many damaged prompts are read quickly."""
    source = load_source(tiny_timm, canvas=32)

    def load(name, *, canvas=None, **_):
        if name != tiny_timm or tuple(canvas) != (32, 32):
            raise UserError(f"another source: {name!r} at {canvas}")
        return source

    monkeypatch.setattr(clipvp.pretrained, "load_source", load)


# What it computes


@pytest.mark.parametrize("prompt", PROMPTS)
def test_it_is_the_mapping_of_the_source_of_the_prompt(prompt, tiny_timm):
    classifier = made(tiny_timm, prompt)
    images = images_for(classifier)
    with torch.no_grad():
        source_logits = classifier.source(classifier.prompt(images))
        torch.testing.assert_close(classifier.source_logits(images), source_logits, rtol=1e-4, atol=1e-5)
        expected = source_logits[:, classifier.mapping.source_index]
        torch.testing.assert_close(classifier(images), expected, rtol=1e-4, atol=1e-5)


def test_after_a_change_of_the_prompt_nothing_old_is_used(tiny_timm):
    classifier = made(tiny_timm)
    images = images_for(classifier)
    with torch.no_grad():
        before = classifier(images)
        classifier.prompt.delta.mul_(-3)
        torch.testing.assert_close(
            classifier.source_logits(images),
            classifier.source(classifier.prompt(images)),
            rtol=1e-4,
            atol=1e-5,
        )
        assert not torch.allclose(classifier(images), before)


def test_only_the_prompt_trains(tiny_timm):
    classifier = made(tiny_timm)
    trained = [name for name, parameter in classifier.named_parameters() if parameter.requires_grad]
    assert trained == ["prompt.delta"]
    assert classifier.num_trainable() == 3 * (32 * 32 - 17 * 17)
    assert classifier.is_prompt
    classifier.train()
    assert not classifier.source.training


def test_parts_that_do_not_fit_are_refused(tiny_timm):
    source = load_source(tiny_timm, canvas=32)
    with pytest.raises(ValueError, match=r"canvas \(16, 16\) is not the source's \(32, 32\)"):
        PromptedClassifier(PaddingPrompt((16, 16), (8, 8)), source, RandomMapping(20, 3), NAMES)
    with pytest.raises(ValueError, match="20 labels to 4 classes does not fit 20 labels and 3 classes"):
        PromptedClassifier(PaddingPrompt((32, 32), (8, 8)), source, RandomMapping(20, 4), NAMES)


def test_what_was_trained_is_taken_over_strictly(tiny_timm):
    one, other = made(tiny_timm), made(tiny_timm, mapping="random")
    other.mapping = copy.deepcopy(one.mapping)
    with torch.no_grad():
        other.prompt.delta.zero_()
    state = {name: value.clone() for name, value in one.trained_state().items()}
    other.load_trained_state(state)
    images = images_for(one)
    with torch.no_grad():
        assert torch.equal(one(images), other(images))
    with pytest.raises(ValueError, match="prompt.delta"):
        other.load_trained_state({**state, "prompt.delta": torch.zeros(3, 4, 4)})
    with pytest.raises(ValueError, match="surplus"):
        other.load_trained_state({**state, "surplus": torch.zeros(1)})
    del state["prompt.delta"]
    with pytest.raises(ValueError, match="prompt.delta"):
        other.load_trained_state(state)


# Predicting


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


def test_predict_is_the_same_in_any_company(tiny_timm):
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


def test_predict_names_what_is_no_image(tiny_timm):
    with pytest.raises(ImageError, match="no/such.png"):
        made(tiny_timm).predict(["no/such.png"])


# Saved equals loaded


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("mapping", ["frequency", "random"])
def test_saved_equals_loaded_to_the_bit(prompt, mapping, tiny_timm, tmp_path):
    classifier = made(tiny_timm, prompt, mapping)
    classifier.save_pretrained(tmp_path / "prompt")
    again = PromptedClassifier.from_pretrained(tmp_path / "prompt")
    images = images_for(classifier)
    with torch.no_grad():
        assert torch.equal(again(images), classifier(images))
    assert again.class_names == classifier.class_names and again.resize == classifier.resize
    picture = photo(30, 40)
    assert again.predict(picture) == classifier.predict(picture)
    labels = classifier.source.labels
    assert again.mapping.describe(labels, NAMES) == classifier.mapping.describe(labels, NAMES)
    again.save_pretrained(tmp_path / "twice")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "twice" / name).read_bytes() == (tmp_path / "prompt" / name).read_bytes()


def test_a_saved_prompt_is_small_and_holds_no_weights_of_the_source(saved):
    tensors = load_file(saved / "model.safetensors")
    assert set(tensors) == {
        "prompt.delta",
        "mapping.source_index",
        "mapping.chosen_count",
        "mapping.class_count",
    }
    config = json.loads((saved / "config.json").read_text())
    assert config["version"] == 1 and config["class_names"] == NAMES
    assert {"prompt", "mapping", "source", "preprocessing"} <= set(config)
    assert config["source"]["fingerprint"] and config["preprocessing"]["mean"]


# Loading is strict


def damaged(saved: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved, tmp_path / "damaged")
    return tmp_path / "damaged"


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        PromptedClassifier.from_pretrained(folder)
    message = str(error.value)
    assert "\n" not in message and len(message) < 500, message
    return message


def edit(folder: Path, change) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def change_tensors(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config.pop("sha256", None)  # as in the first prompts: what is wrong is found without it
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "change, word",
    [
        (lambda t: t.pop("prompt.delta"), "missing or extra tensors: prompt.delta"),
        (lambda t: t.update({"prompt.more": torch.ones(1)}), "missing or extra tensors: prompt.more"),
        (lambda t: t.update({"prompt.delta": torch.ones(3, 4, 4)}), "(3, 4, 4)"),
        (lambda t: t.update({"prompt.delta": torch.ones(3, 32, 32).half()}), "float16"),
        (lambda t: t.update({"mapping.source_index": torch.tensor([0, 1, 20])}), "outside 0..19"),
        (lambda t: t.update({"mapping.source_index": torch.tensor([0, 1, -1])}), "outside 0..19"),
        (lambda t: t.update({"mapping.source_index": torch.tensor([0, 1])}), "(2,)"),
    ],
)
def test_tensors_that_do_not_fit(change, word, saved, tmp_path, one_source):
    folder = damaged(saved, tmp_path)
    change_tensors(folder, change)
    message = refused(folder)
    assert word in message and "damaged" in message


@pytest.mark.parametrize(
    "change, word",
    [
        (lambda c: c.update(version=2), "format version 2"),
        (lambda c: c.update(version="1"), "format version"),
        (lambda c: c.update(format="other"), "not the config of a clipvp prompt"),
        (lambda c: c.pop("mapping"), "'mapping'"),
        (lambda c: c["source"].pop("fingerprint"), "'source.fingerprint'"),
        (lambda c: c["source"].update(fingerprint="0" * 16), "another version of the model"),
        (lambda c: c["source"].update(name=5), "'source.name'"),
        (lambda c: c["source"].update(canvas=[32]), "source.canvas"),
        (lambda c: c["prompt"].update(kind="padded"), "did you mean 'padding'"),
        (lambda c: c["prompt"].update(image_size=[99, 99]), "99x99"),
        (lambda c: c["prompt"].update(nonsense=1), "nonsense"),
        (lambda c: c["mapping"].update(num_target=4), "4 classes"),
        (lambda c: c["class_names"].append("more"), "4 classes"),
        (lambda c: c.update(class_names=[1, 2, 3]), "'class_names'"),
    ],
)
def test_configs_that_do_not_fit(change, word, saved, tmp_path):
    folder = damaged(saved, tmp_path)
    edit(folder, change)
    assert word in refused(folder)


def test_another_models_weights_are_refused(saved, tmp_path):
    """The source of the same name has changed since."""
    folder = damaged(saved, tmp_path)
    source = Path(json.loads((folder / "config.json").read_text())["source"]["name"].rpartition(":")[2])
    shutil.copytree(source, tmp_path / "source")
    change_tensors(tmp_path / "source", lambda tensors: next(iter(tensors.values())).view(-1)[:1].add_(1))
    edit(folder, lambda c: c["source"].update(name=f"timm:local-dir:{tmp_path / 'source'}"))
    assert "another version of the model" in refused(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"[]", b"\xff\xfe\xff", b"{" * 1000])
def test_files_that_are_missing_or_no_such_files(name, content, saved, tmp_path):
    folder = damaged(saved, tmp_path)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    assert "damaged" in refused(folder)


def test_a_folder_that_is_no_prompt_or_not_there(tmp_path):
    assert "config.json and model.safetensors missing" in refused(tmp_path)
    assert "there is no folder" in refused(tmp_path / "nothing")


ODD = [
    None,
    True,
    -1,
    0,
    1,
    3.5,
    10**12,
    "",
    "x",
    "padding",
    [],
    [1],
    [1, 2],
    [-3, 5],
    ["a", "b"],
    {},
    {"a": 1},
]


def places(value, path=()):
    """Return the paths of everything inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [place for key, item in inner for place in places(item, (*path, key))]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_of_a_config_is_refused_or_harmless(data, saved, tmp_path_factory, one_source):
    config = json.loads((saved / "config.json").read_text())
    path = data.draw(st.sampled_from(places(config)))
    target = config
    for key in path[:-1]:
        target = target[key]
    if data.draw(st.booleans()) and isinstance(target, dict):
        del target[path[-1]]
    else:
        target[path[-1]] = data.draw(st.sampled_from(ODD))
    folder = tmp_path_factory.mktemp("changed")
    shutil.copy(saved / "model.safetensors", folder)
    (folder / "config.json").write_text(json.dumps(config))
    try:
        classifier = PromptedClassifier.from_pretrained(folder)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert len(classifier.predict(photo(9, 9))[0]) == 3
