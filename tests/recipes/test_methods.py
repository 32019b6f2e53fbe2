"""Every file of recipes/configs/methods is a method: it trains, is saved, loaded, shown, and predicts."""

import json
import sys
from pathlib import Path

import pytest
import torch
from conftest import coloured_images

from clipvp import PromptedClassifier, Task, build_classifier, fit
from clipvp.cli.main import main
from clipvp.config.values import from_dict
from clipvp.registry import UserError

METHODS = Path(__file__).parents[2] / "recipes" / "configs" / "methods"
sys.path.insert(0, str(METHODS.parents[1]))
NAMES = ["tench", "goldfish", "sea snake"]
OF_CLIP = {"ilm_within", "vp_tp", "vp", "evp", "rvp", "zero_shot", "zero_shot_ensemble", "zs_lp", "task_res"}
OF_CLIP |= {"tip_adapter", "tip_adapter_f", "lp_plus_plus", "attr_vr", "waffle", "dvp_cls", "dvp_cse", "dga"}
OF_CLIP |= {"clip_lora", "blackvip"}
ALL = sorted(path.stem for path in METHODS.glob("*.yaml"))
TEXTS = {"mapping": {"templates": ["a photo of a {}.", "{}", "the {}."]}}


@pytest.fixture
def task():
    return Task.from_dataset(
        coloured_images(36, 3, seed=1),
        coloured_images(12, 3, seed=2),
        coloured_images(9, 3, seed=3),
        class_names=NAMES,
    )


@pytest.fixture
def encoder(tiny_timm_vit) -> str:
    """The encoder of a prompt, in the place of one from the hub."""
    return tiny_timm_vit.removeprefix("timm:")


def run_of(method: str, source: str, output: Path, encoder: str = "", **more):
    import yaml

    values = yaml.safe_load((METHODS / f"{method}.yaml").read_text())
    if source.startswith("open_clip") and not {"templates", "texts"} & values["mapping"].keys():
        values["mapping"] |= TEXTS["mapping"]
    if values.get("prompt", {}).get("view_by") == "groups":
        output.parent.mkdir(exist_ok=True)
        values["mapping"]["texts"] = {group: str(output.parent / f"{group}.json") for group in "abc"}
        for path in values["mapping"]["texts"].values():
            Path(path).write_text(json.dumps({name: [f"a {path[-6]} of {name}."] for name in NAMES}))
        values["mapping"].pop("templates", None)
    values["source"] = {"name": source, "canvas": 32} if source.startswith("timm") else {"name": source}
    train = {**values.get("train", {}), "batch_size": 12, "progress": False}
    train.pop("protocol", None)
    values["train"] = train | {"epochs": min(train.get("epochs", 2), 3)}
    if "encoder" in values.get("prompt", {}):
        values["prompt"]["encoder"] = encoder
    if values.get("prompt", {}).get("kind") == "border":
        values["prompt"]["width"] = 3
    elif "prompt" not in values:
        values["prompt"] = {"kind": "padding", "image_size": 16}
    return from_dict({**values, "output": str(output), "seed": 3, **more})


def source_of(method: str, tiny_timm: str, tiny_model) -> str:
    return tiny_model("open_clip_vit") if method in OF_CLIP else tiny_timm


@pytest.mark.parametrize("method", ALL)
def test_a_method_from_its_file_to_a_prediction(
    method, task, tiny_timm, tiny_model, encoder, tmp_path, capsys
):
    run = run_of(method, source_of(method, tiny_timm, tiny_model), tmp_path / "run", encoder)
    classifier = build_classifier(run, task)
    result = fit(classifier, task, run)
    folder = tmp_path / "run" / "prompt"
    loaded = PromptedClassifier.from_pretrained(folder)
    images = torch.rand(5, 3, *classifier.resize.size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = classifier.eval()(images)
        assert torch.equal(loaded(images), expected)
        torch.testing.assert_close(classifier.fold()(images), expected, rtol=1e-4, atol=1e-4)
    assert expected.shape == (5, 3) and expected.isfinite().all()
    pictures = [image for image, _ in coloured_images(4, 3, seed=2)]
    assert [row[0]["label"] for row in loaded.predict(pictures)] == [
        row[0]["label"] for row in classifier.predict(pictures)
    ]
    for verb in ("show", "map"):
        main([verb, str(folder)])
    assert "%" in capsys.readouterr().out and (folder / "README.md").exists()
    assert result.results["metrics"]["test.best_val"]["n"] == 12


@pytest.mark.parametrize("method", ["linear_probe", "class_means", "linear_probe_adam", "prompt_linear"])
def test_a_linear_head_learns_what_colours_tell(method, task, tiny_timm, tmp_path):
    run = run_of(method, tiny_timm, tmp_path / "run")
    result = fit(build_classifier(run, task), task, run)
    assert result.results["metrics"]["test.last"]["acc1"] > 0.8  # chance is 1/3


@pytest.mark.parametrize(
    "method", sorted(OF_CLIP - {"ilm_within", "vp_tp", "vp", "evp", "zero_shot", "clip_lora", "blackvip"})
)
def test_texts_for_a_closed_source_are_one_line(method, task, tiny_timm, tmp_path):
    run = run_of(method, tiny_timm, tmp_path / "run")
    run.mapping.templates = None
    with pytest.raises(UserError, match="closed label set") as error:
        build_classifier(run, task)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("header", ALL)
def test_a_method_says_what_it_is(header):
    assert (METHODS / f"{header}.yaml").read_text().startswith("# ")
