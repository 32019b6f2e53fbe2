"""The pictures of a run: each one that should exist, with the data of the right class in the right place."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import closed_source, small_task
from PIL import Image
from torch import nn

from clipvp import EvalResult, PromptedClassifier
from clipvp.artifact import pictures
from clipvp.config.schema import PromptConfig
from clipvp.labels.space import LabelSpace
from clipvp.mappings.base import LabelMapping
from clipvp.mappings.dga import DgaMapping
from clipvp.mappings.frequency import FrequencyMapping
from clipvp.mappings.statistic import Counts
from clipvp.prompts.base import VisualPrompt
from clipvp.prompts.build import build_prompt
from clipvp.prompts.dga import DgaPrompt
from clipvp.prompts.none import NoPrompt
from clipvp.prompts.padding import PaddingPrompt
from clipvp.prompts.several import SeveralPrompts
from clipvp.registry import PROMPTS

NAMES = ["red thing", "green thing", "blue thing"]
# Counted when the mapping was fitted, and on the test images: label by class, no two columns alike.
TRAIN = torch.tensor([[0, 1, 0], [14, 0, 2], [1, 0, 17], [5, 0, 1], [0, 18, 0], [0, 1, 0]])
TEST = torch.tensor([[1, 0, 0], [6, 0, 1], [0, 2, 5], [2, 0, 0], [0, 6, 1], [0, 0, 1]])
CONFUSION = torch.tensor([[7, 2, 0], [1, 6, 1], [0, 3, 5]])
HISTORY = [
    {"epoch": 1, "train_loss": 1.0, "train_acc1": 0.5, "source_index": [0, 4, 2]},
    {"epoch": 2, "train_loss": 0.5, "train_acc1": 0.75, "source_index": [1, 4, 2], "mapping_changed": 1},
]
ALWAYS = {"curves", "confusion"}
OF_A_PROMPT = {"examples", "mapping"}


class FeatureMapping(LabelMapping):
    """Takes features, so that no source label is behind a class."""

    kind, takes = "feature", "features"

    def forward(self, outputs):
        return outputs[:, : self.num_target]


class TwoViews(VisualPrompt):
    """The image as it is, and black."""

    kind, views = "two", 2

    def forward(self, images):
        return torch.cat([images, torch.zeros_like(images)])


@pytest.fixture
def draw(tmp_path, monkeypatch):
    (
        """A function that saves the pictures of a run and returns its figures by name; every file must be written.

    To save time, ``rendered`` may hold the first letters of names: other figures are written as blank pictures.
    """
        ""
    )
    figures = {}

    save = pictures.save_figure

    def run(mapping=None, prompt=None, labels=None, history=HISTORY, rendered=()):
        def keep(figure, path):
            figures[path.stem] = figure
            if path.stem.startswith(rendered or path.stem):
                return save(figure, path)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (60, 60)).save(path)
            return path

        monkeypatch.setattr(pictures, "save_figure", keep)
        network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 6))
        source = closed_source(network, 6, canvas=(8, 8))
        source.labels = labels or source.labels
        if mapping is None:
            mapping = FrequencyMapping(6, 3)
            mapping.fit(Counts.from_matrix(TRAIN))
        source.outputs = mapping.takes
        prompt = prompt or PaddingPrompt((8, 8), (4, 4))
        prompt = prompt if isinstance(prompt, nn.Module) else build_prompt(prompt, source, seed=3)
        classifier = PromptedClassifier(prompt, source, mapping, NAMES)
        classifier.save_pretrained(tmp_path / "prompt")
        scores = EvalResult(18 / 25, None, 0.7, 25, CONFUSION, Counts.from_matrix(TEST))
        result = SimpleNamespace(test={"last": scores}, history=history, output=tmp_path)
        written = pictures.save_pictures(result, classifier, small_task())
        assert {f"{name}.png" for name in figures} == {*written}
        for name in written:
            with Image.open(tmp_path / "plots" / name) as picture:
                assert min(picture.size) > 50
        return figures

    return run


def cells(ax) -> np.ndarray:
    """Return the whole numbers written into the cells of a heat map."""
    numbers = np.zeros(ax.images[0].get_array().shape, dtype=int)
    for text in ax.texts:
        column, row = text.get_position()
        numbers[row, column] = int(text.get_text().split("/")[-1])
    return numbers


def names_of(axis) -> list[str]:
    return [tick.get_text() for tick in axis.get_ticklabels()]


def first_images() -> dict[int, np.ndarray]:
    """Return the first test image of each class, (4, 4, 3) in [0, 1], as the padding prompt takes it."""
    tensors = small_task().tensors("test", PaddingPrompt((8, 8), (4, 4)).resize(None), progress=False)
    rows = {c: int((tensors.labels == c).nonzero()[0]) for c in range(3)}
    return {c: tensors.images[row].permute(1, 2, 0).numpy() / 255 for c, row in rows.items()}


def test_every_picture_of_a_run_exists(draw, tmp_path):
    assert draw().keys() == ALWAYS | OF_A_PROMPT | {"gallery", "prompt", "moves"}
    beside = {path.stem for path in (tmp_path / "prompt").glob("*.png")}
    assert beside == {"prompt", "examples", "gallery", "confusion"}
    card = (tmp_path / "prompt" / "README.md").read_text(encoding="utf-8")
    assert all(f"({name}.png)" in card for name in beside)


PADDING = {"kind": "padding", "canvas": [8, 8], "image_size": [4, 4]}
OF_EACH = {  # the pictures of each prompt, of what it learned and of what it makes of each image
    "none": set(),
    **dict.fromkeys(["padding", "border", "patch", "full", "low_rank", "scaled"], {"prompt"}),
    "smm": {"prompt", "masks"},
    "coordinator": {"masks"},
    "several": {"prompt_1", "prompt_2"},
    "dga": {"prompt_1", "prompt_2", "prompt_3", "prompt_4"},
}


def test_the_pictures_of_each_prompt_are_listed():
    assert {name for name in PROMPTS.names() if not PROMPTS.plugin(name)} == OF_EACH.keys()


@pytest.mark.parametrize("kind", OF_EACH)
def test_every_prompt_has_its_pictures_and_they_are_in_the_card(kind, draw, tiny_model, tmp_path):
    own = {"patch_size": 2, "width": 2, "encoder": tiny_model("timm_classifier").removeprefix("timm:")}
    keys = {"patch": ["patch_size"], "smm": ["patch_size"], "border": ["width"], "coordinator": ["encoder"]}
    given = {}
    if kind == "several":
        prompt = SeveralPrompts((8, 8), [PADDING, PADDING], [0, 1, 0, 1, 0, 1])
    elif kind == "dga":
        prompt = DgaPrompt((8, 8), (4, 4), levels=1, crops=1, crop_step=1)
        given = {"mapping": DgaMapping(6, 3, levels=1, crops=1, num_features=6)}
        given["labels"] = LabelSpace.from_templates(["a {}.", "the {}."], NAMES)
    else:
        prompt = PromptConfig(kind=kind, **{key: own[key] for key in keys.get(kind, [])})
    figures = draw(prompt=prompt, history=HISTORY[:1], rendered=("prompt", "masks"), **given)
    assert {name for name in figures if name.startswith(("prompt", "masks"))} == OF_EACH[kind]
    card = (tmp_path / "prompt" / "README.md").read_text(encoding="utf-8")
    assert {name for name in ("prompt", "masks") if f"]({name}.png)" in card} == OF_EACH[kind] & {
        "prompt",
        "masks",
    }
    assert (tmp_path / "prompt" / "masks.png").is_file() == ("masks" in OF_EACH[kind])
    assert f"**{kind}** prompt" in card


@pytest.mark.parametrize("kind", ["smm", "coordinator"])
def test_masks_are_those_of_the_images_above_them(kind, draw, tiny_model):
    encoder = tiny_model("timm_classifier").removeprefix("timm:")
    own = {"patch_size": 2} if kind == "smm" else {"encoder": encoder}
    source = closed_source(nn.Sequential(nn.Flatten(), nn.Linear(192, 6)), 6, canvas=(8, 8))
    prompt = build_prompt(PromptConfig(kind=kind, **own), source, seed=3)
    figure = draw(prompt=prompt, rendered=("masks",))["masks"]
    axes = figure.axes
    images = torch.stack(
        [torch.tensor(np.asarray(ax.images[0].get_array())).permute(2, 0, 1) for ax in axes[:3]]
    )
    with torch.no_grad():
        masks = prompt.masks(images.float()).numpy()
    scale = np.quantile(np.abs(masks), 0.995)
    assert f"white +{scale:.3g}" in figure.get_suptitle().replace("\n", " ")
    for ax, mask in zip(axes[3:], masks, strict=True):
        expected = np.clip(0.5 + mask.transpose(1, 2, 0) / (2 * scale), 0, 1)
        np.testing.assert_allclose(ax.images[0].get_array(), expected, atol=1e-3)
    assert [ax.get_title() for ax in axes[:3]] == NAMES


def test_the_mapping_shows_the_test_counts_of_each_class_and_outlines_its_label(draw):
    ax = draw()["mapping"].axes[0]
    labels = [int(name.split()[1]) for name in names_of(ax.yaxis)]
    assert labels[:3] == [1, 4, 2] and sorted(labels) == list(range(6))
    assert names_of(ax.xaxis) == NAMES
    np.testing.assert_array_equal(cells(ax), TEST[labels])
    np.testing.assert_allclose(ax.images[0].get_array(), TEST[labels] / TEST.sum(0))
    assert {(round(p.get_y() + 0.5), round(p.get_x() + 0.5)) for p in ax.patches} == {(0, 0), (1, 1), (2, 2)}


def test_the_confusion_has_true_classes_as_rows(draw):
    ax = draw()["confusion"].axes[0]
    assert names_of(ax.xaxis) == names_of(ax.yaxis) == NAMES
    np.testing.assert_array_equal(cells(ax), CONFUSION)


def test_the_gallery_has_the_image_the_label_and_the_counts_of_each_class(draw):
    axes = draw()["gallery"].axes
    taken = {0: (1, 14, "70%"), 1: (4, 18, "90%"), 2: (2, 17, "85%")}
    for c, image in first_images().items():
        np.testing.assert_allclose(axes[c].images[0].get_array(), image, atol=1e-6)
        text = " ".join(" ".join(text.get_text() for text in axes[c].texts).split())
        label, count, share = taken[c]
        assert NAMES[c] in text and f"label {label}" in text
        assert f"when chosen: {count} images, {share} of the class" in text


def test_examples_are_the_images_and_what_the_prompt_makes_of_them(draw):
    axes = draw()["examples"].axes
    for c, image in first_images().items():
        assert axes[c].get_title() == NAMES[c]
        np.testing.assert_allclose(axes[c].images[0].get_array(), image, atol=1e-6)
        prompted = axes[3 + c].images[0].get_array()
        np.testing.assert_allclose(prompted[2:6, 2:6], image, atol=1e-6)
        np.testing.assert_allclose(prompted[0], 0.5)


def test_of_several_views_the_first_one_is_shown(draw):
    figures = draw(prompt=TwoViews((8, 8), (8, 8)))
    assert figures.keys() == ALWAYS | OF_A_PROMPT | {"gallery", "moves"}  # no picture shows what it learned
    axes = figures["examples"].axes
    assert len(axes) == 6
    for above, below in zip(axes[:3], axes[3:], strict=True):
        np.testing.assert_array_equal(above.images[0].get_array(), below.images[0].get_array())


def test_labels_made_of_texts_have_a_picture_of_their_templates(draw):
    labels = LabelSpace.from_templates(["a {}.", "the {}."], NAMES)
    ax = draw(labels=labels)["templates"].axes[0]
    assert names_of(ax.yaxis) == ["a {}.  (2)", "the {}.  (1)"]
    assert [name.split(" ← ")[0] for name in names_of(ax.xaxis)] == NAMES
    np.testing.assert_array_equal(cells(ax), torch.stack([TEST[:3].sum(0), TEST[3:].sum(0)]))


def test_a_mapping_on_features_has_counts_and_no_labels(draw):
    figures = draw(mapping=FeatureMapping(3 * 8 * 8, 3), prompt=NoPrompt((8, 8)), history=HISTORY[:1])
    assert figures.keys() == ALWAYS | OF_A_PROMPT
    ax = figures["mapping"].axes[0]
    labels = [int(name.split()[1]) for name in names_of(ax.yaxis)]
    np.testing.assert_array_equal(cells(ax), TEST[labels])
    assert not ax.patches and "no class takes a label" in figures["mapping"].get_suptitle().replace("\n", " ")
