"""From base to new classes: one prompt, two halves of a task, one harmonic mean."""

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import small_config, write_image_folder
from hypothesis import given, settings
from hypothesis import strategies as st

from clipvp import PromptedClassifier, build_classifier, load_task
from clipvp.config.schema import DataConfig
from clipvp.registry import UserError
from clipvp.scoring.scores import evaluate
from clipvp.training.base_to_new import fit_base_to_new, harmonic_mean


@pytest.fixture
def folder(tmp_path) -> str:
    return str(write_image_folder(tmp_path / "images", {"train": 50, "val": 10, "test": 25}, 5))


def test_a_closed_label_set_counts_the_new_classes(tiny_timm, folder, tmp_path):
    config = small_config(tiny_timm, tmp_path / "run", data={"name": folder, "shots": 4}, train={"epochs": 1})
    found = fit_base_to_new(config)
    assert found.mapping == "counts of 8 training images of the new classes"
    assert found.base.n == 15 and found.new.n == 10  # of 5 classes, 3 are base classes
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    stored = results["base_to_new"]
    assert results["config"]["data"]["classes"] == "base" and results["num_classes"] == 3
    assert stored["base"]["acc1"] == results["metrics"]["test.best_val"]["acc1"]
    expected = harmonic_mean(stored["base"]["acc1"], stored["new"]["acc1"])
    assert stored["harmonic_mean"] == pytest.approx(expected)
    saved = PromptedClassifier.from_pretrained(tmp_path / "run" / "prompt")
    base = load_task(DataConfig(name=folder, classes="base"))
    assert evaluate(saved, base, progress=False).acc1 == found.base.acc1
    with pytest.raises(UserError, match="other classes than the classifier was made for, such as 'class3'"):
        evaluate(saved, load_task(DataConfig(name=folder, classes="new")), progress=False)


def test_one_template_needs_no_image_of_a_new_class(tiny_model, folder, tmp_path):
    mapping = {"kind": "identity", "class_names": {"class0": "zebra", "class4": "yak"}}
    config = small_config(
        tiny_model("hf_clip"),
        tmp_path / "run",
        data={"name": folder},
        mapping=mapping,
        prompt={"kind": "border", "width": 4},
        train={"epochs": 1},
    )
    found = fit_base_to_new(config)
    assert found.mapping == "needs no images" and found.new.n == 10
    names = found.fit.results["config"]["mapping"]["class_names"]
    assert names == {"class0": "zebra"}  # each half takes the names of its own classes


@pytest.mark.parametrize("view_by", ["clusters", "groups"])
def test_new_classes_get_their_texts_and_the_prompts_of_their_clusters(view_by, tiny_model, folder, tmp_path):
    for group in ("shape", "colour"):
        texts = {f"class{i}": [f"its {group} is {word} {i}." for word in ("this", "that")] for i in range(5)}
        (tmp_path / f"{group}.json").write_text(json.dumps(texts))
    config = small_config(
        tiny_model("open_clip_vit"),
        tmp_path / "run",
        data={"name": folder, "shots": 4},
        mapping={
            "kind": "text_pool",
            "pool": "top_k_mean",
            "texts": {g: str(tmp_path / f"{g}.json") for g in ("shape", "colour")},
        },
        prompt={"kind": "border", "width": 4, "views": 2, "view_by": view_by},
        train={"epochs": 1},
    )
    config.source.canvas = None
    found = fit_base_to_new(config)
    assert found.mapping == "needs no images" and found.new.n == 10
    task = load_task(DataConfig(name=folder, classes="new", shots=4))
    base = PromptedClassifier.from_pretrained(tmp_path / "run" / "prompt")
    new = build_classifier(replace(config, data=replace(config.data, classes="new")), task)
    new.prompt.take_over(base.prompt, base.source, new.source)
    assert all(
        torch.equal(a.delta, b.delta) for a, b in zip(new.prompt.parts(), base.prompt.parts(), strict=True)
    )
    assert evaluate(new, task, progress=False).acc1 == found.new.acc1
    if view_by == "groups":
        assert [("shape", "colour")[view] for view in new.prompt.view_of] == list(new.source.labels.groups)
    else:
        texts, owner = base.source.text_features, base.prompt.view_of
        means = torch.stack([texts[owner == view].mean(0) for view in range(2)])
        for text, view in zip(new.source.text_features, new.prompt.view_of.tolist(), strict=True):
            assert (text - means[view]).norm() <= (text - means[1 - view]).norm()
    assert new.prompt.settings["view_of"] == new.prompt.view_of.tolist()


DGA = {"levels": 1, "crops": 1}
NO_PROMPT = {"kind": "none", "image_size": None}
# Prompt, mapping, and whether the new classes' images are counted.
METHODS = {
    "attr_vr": ({}, {"kind": "text_pool", "pool": "top_k_mean"}, False),
    "rvp": ({}, {"kind": "text_mixing"}, False),
    "dga": ({"kind": "dga", "crop_step": 4, **DGA}, {"kind": "dga", **DGA}, True),
    "dvp_cls": ({"views": 2}, {"kind": "text_counts", "statistics": "running"}, True),
    "dvp_cse": (
        {"views": 2, "view_by": "groups"},
        {"kind": "text_counts", "statistics": "running", "texts": {"shape": "a", "colour": "b"}},
        True,
    ),
    "ilm": ({}, {"kind": "frequency"}, True),
    "waffle": (NO_PROMPT, {"kind": "text_pool", "texts": "waffle"}, False),
    "prototypes": (NO_PROMPT, {"kind": "prototypes"}, False),
    "tip_adapter": (NO_PROMPT, {"kind": "tip_adapter"}, True),
    "lp_plus_plus": (NO_PROMPT, {"kind": "lp_plus_plus"}, True),
}


@pytest.mark.parametrize("method", METHODS)
def test_methods_of_clip_go_from_base_to_new(method, tiny_model, folder, tmp_path):
    prompt, mapping, counts = METHODS[method]
    texts = mapping.get("texts")
    if isinstance(texts, dict):
        texts = {group: str(tmp_path / f"{name}.json") for group, name in texts.items()}
        for group, path in texts.items():
            own = {
                f"class{i}": [f"its {group} is {word} {i}." for word in ("this", "that")] for i in range(5)
            }
            Path(path).write_text(json.dumps(own))
    bank = {"texts": texts} if texts else {"templates": ["a {}.", "the {}.", "{}"]}
    config = small_config(
        tiny_model("open_clip_vit"),
        tmp_path / "run",
        data={"name": folder, "shots": 4},
        mapping={**mapping, **bank},
        prompt={"kind": "padding", "image_size": 16, **prompt},
        train={"epochs": 1},
    )
    found = fit_base_to_new(config)
    images = "counts of 8 training images of the new classes" if counts else "needs no images"
    assert found.mapping == images and found.base.n == 15 and found.new.n == 10
    assert found.new.class_names == ["class3", "class4"]


def test_new_classes_too_few_for_the_tree_are_told_before_training(tiny_model, folder, tmp_path):
    config = small_config(
        tiny_model("open_clip_vit"),
        tmp_path / "run",
        data={"name": folder},
        mapping={"kind": "dga", "templates": ["a {}."]},
        prompt={"kind": "dga", "image_size": 16, "crop_step": 4},
    )
    with pytest.raises(UserError, match="2 levels above the classes need 3 classes or more; there are 2$"):
        fit_base_to_new(config)
    assert not (tmp_path / "run").exists()


def test_only_the_whole_task_has_two_halves(tiny_timm, folder, tmp_path):
    config = small_config(tiny_timm, tmp_path / "run", data={"name": folder, "classes": "new"})
    with pytest.raises(UserError, match=r"data\.classes: new leaves no other classes"):
        fit_base_to_new(config)


@settings(deadline=None)
@given(*[st.integers(0, 1000).map(lambda hits: hits / 1000)] * 2)
def test_the_harmonic_mean_is_between_the_two_and_zero_with_either(one, other):
    mean = harmonic_mean(one, other)
    if one and other:
        assert min(one, other) * (1 - 1e-9) <= mean <= max(one, other) * (1 + 1e-9)
    else:
        assert mean == 0
    assert mean == pytest.approx(harmonic_mean(other, one))


def test_a_prompt_is_scored_on_some_of_its_classes(tiny_timm, folder, tmp_path):
    config = small_config(tiny_timm, tmp_path / "run", data={"name": folder}, train={"epochs": 1})
    from conftest import trained

    classifier, _ = trained(config, load_task(config.data))
    new = load_task(DataConfig(name=folder, classes="new"))
    scores = evaluate(classifier, new, progress=False)
    pixels = new.tensors("test", classifier.resize, progress=False)
    with torch.no_grad():
        logits = classifier(pixels.images.float() / 255)[:, 3:]
    assert scores.acc1 == pytest.approx((logits.argmax(1) == pixels.labels).float().mean().item())


def test_the_recipe_prints_both_halves_and_their_mean(tiny_timm, folder, tmp_path, monkeypatch, capsys):
    options = ["--source.canvas=32", "--prompt.image_size=16", "--train.epochs=1", "--train.progress=false"]
    options += [f"--source.name={tiny_timm}", f"--data.name={folder}", f"--output={tmp_path / 'run'}"]
    monkeypatch.setattr(sys, "argv", ["base_to_new.py", *options])
    runpy.run_path(str(Path(__file__).parents[2] / "recipes" / "base_to_new.py"), run_name="__main__")
    printed = capsys.readouterr().out
    stored = json.loads((tmp_path / "run" / "results.json").read_text())["base_to_new"]
    for score in (stored["base"]["acc1"], stored["new"]["acc1"], stored["harmonic_mean"]):
        assert f"{100 * score:.1f} %" in printed
    assert "harmonic mean" in printed and "training images of the new classes" in printed
