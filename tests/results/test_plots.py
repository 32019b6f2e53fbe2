"""Pictures show the right cells, names and cuts, for any name and any size."""

from __future__ import annotations

import copy
import gc
import io
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from clipvp.labels.space import LabelSpace
from clipvp.mappings.assignment import assign_greedy
from clipvp.mappings.base import Links
from clipvp.mappings.frequency import FrequencyMapping
from clipvp.mappings.statistic import Counts
from clipvp.prompts.base import Learned, VisualPrompt
from clipvp.prompts.border import BorderPrompt
from clipvp.prompts.full import FullPrompt
from clipvp.prompts.none import NoPrompt
from clipvp.prompts.padding import PaddingPrompt
from clipvp.prompts.patch import PatchPrompt
from clipvp.registry import UserError
from clipvp.results import plots
from clipvp.results.plots.base import shorten, wrap, writing
from clipvp.results.tables import EPOCH_COLUMNS, mapping_rows

WEIRD = [
    "$a_b$",
    "x^{2}_1",
    "{}",
    "猫と犬",
    "собака",
    "قطة",
    "tab\tnew\nline",
    "🐶 dog",
    "\\frac{a}{b}",
    ".",
    "a" * 300,
]


def space(number: int) -> LabelSpace:
    return LabelSpace(tuple(f"label {i}" for i in range(number)))


def classes(number: int) -> list[str]:
    return [f"class {i}" for i in range(number)]


def random_counts(num_source: int, num_target: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    some = torch.rand(num_source, num_target, generator=generator) < 0.3
    return torch.randint(1, 50, (num_source, num_target), generator=generator) * some


def counted(matrix) -> Counts:
    return Counts.from_matrix(torch.as_tensor(matrix))


def taken(index, weight=None) -> Links:
    """Return links to one source label a class (T,), or to several (T, k)."""
    index = torch.as_tensor(index)
    index = index[:, None] if index.ndim == 1 else index
    return Links(index, torch.as_tensor(weight) if weight is not None else (index >= 0).float())


def rows_of(mapping, number: int, names: list[str]) -> list[dict]:
    return mapping_rows(mapping.links(), space(number).names, names)


def history(epochs: int, num_classes: int = 4) -> list[dict]:
    rows = []
    for epoch in range(epochs):
        rows.append(
            {
                "epoch": epoch,
                "train_loss": 2.0 / (epoch + 1),
                "train_acc1": 1 - 0.8 / (epoch + 1),
                "val_acc1": 0.9 - 0.5 / (epoch + 1) - 0.02 * max(0, epoch - 5),
                "lr": 0.01 if epoch < epochs / 2 else 0.001,
                "mapping_changed": num_classes if epoch == 0 else max(0, 3 - epoch),
                "source_index": [max(epoch, 2) + 10 * t for t in range(num_classes)],
            }
        )
    return rows


def title(figure: Figure) -> str:
    return figure.get_suptitle().replace("\n", " ")


def ticks(ax, which: str) -> list[str]:
    return [tick.get_text() for tick in getattr(ax, f"get_{which}ticklabels")()]


def outlined(ax) -> dict[tuple[int, int], float]:
    """Return the outlined cells, (row, column), with the width of their lines."""
    patches = [patch for patch in ax.patches if isinstance(patch, Rectangle) and not patch.get_fill()]
    places = [(round(patch.get_y() + 0.5), round(patch.get_x() + 0.5)) for patch in patches]
    return {place: patch.get_linewidth() for place, patch in zip(places, patches, strict=True)}


def clipped(figure: Figure) -> list[str]:
    """Return the texts that leave the figure, laid out as for saving."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.get_layout_engine().execute(figure)
    figure.draw(renderer)
    box = figure.bbox.padded(1.5)
    out = []
    for text in figure.findobj(Text):
        # Numbers are left out: an axis keeps those beyond its limits and does not draw them.
        if text.get_visible() and text.get_text().strip("− .%0123456789"):
            extent = text.get_window_extent(renderer)
            if extent.x0 < box.x0 or extent.y0 < box.y0 or extent.x1 > box.x1 or extent.y1 > box.y1:
                out.append(text.get_text())
    return out


def check(figure: Figure) -> None:
    """The figure is of a sane size, is drawn without a warning, and is not blank."""
    assert isinstance(figure, Figure) and max(figure.get_size_inches()) < 30
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=40)
    pixels = np.asarray(Image.open(buffer).convert("L"))
    assert pixels.min() < 128 < pixels.max()


# The prompt


def test_prompt_picture_is_the_frame_and_blank_inside():
    prompt = PaddingPrompt((20, 24), (10, 12))
    torch.nn.init.normal_(prompt.delta)
    before = copy.deepcopy(prompt.state_dict())
    figure = plots.plot_prompt(prompt)
    left, right = figure.axes[:2]
    picture, heat = left.images[0].get_array(), right.images[0].get_array()
    mask = prompt.mask[0].bool().numpy()
    frame = torch.sigmoid(prompt.delta.detach()).numpy()
    np.testing.assert_allclose(picture[..., :3].transpose(2, 0, 1)[:, mask], frame[:, mask], rtol=1e-6)
    np.testing.assert_array_equal(picture[..., 3] > 0, mask)
    np.testing.assert_allclose(heat[mask], np.abs(frame - 0.5).mean(0)[mask], rtol=1e-5)
    np.testing.assert_array_equal(np.ma.getmaskarray(heat), ~mask)
    assert "padding prompt" in title(figure) and f"{prompt.num_trainable():,}" in title(figure)
    assert len(figure.axes) == 3  # two panels and a colour bar
    assert all(torch.equal(before[key], value) for key, value in prompt.state_dict().items())
    assert prompt.delta.requires_grad


def test_additive_prompt_is_shown_around_grey_on_a_stated_scale():
    prompt = BorderPrompt((16, 16), width=3, scale=[0.2, 0.3, 0.4])
    with torch.no_grad():
        prompt.delta[:, :2] = 1.0
        prompt.delta[:, 14:] = -1.0
    figure = plots.plot_prompt(prompt)
    picture = figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(picture[0, 0, :3], 0.5 + np.array([0.2, 0.3, 0.4]) / 0.8, rtol=1e-6)
    np.testing.assert_allclose(picture[2, 0, :3], 0.5)
    np.testing.assert_allclose(picture[15, 0, :3], 0.5 - np.array([0.2, 0.3, 0.4]) / 0.8, atol=1e-6)
    assert "black −0.4, white +0.4" in figure.axes[0].get_title()
    assert figure.axes[1].images[0].get_array()[0, 0] == pytest.approx(0.3)


@pytest.mark.parametrize(
    "prompt",
    [
        PaddingPrompt((8, 8), (4, 4)),
        PaddingPrompt((8, 8), (8, 8)),
        BorderPrompt((8, 8), 2),
        PatchPrompt((8, 12), 3, (1, 2)),
        FullPrompt((12, 8)),
    ],
    ids=["padding", "no frame", "border", "patch", "full"],
)
def test_every_prompt_is_drawn_at_its_start(prompt):
    figure = plots.plot_prompt(prompt)
    check(figure)
    assert float(np.ma.max(figure.axes[1].images[0].get_array().filled(0))) == 0


def test_a_prompt_that_no_picture_shows_has_a_note():
    figure = plots.plot_prompt(NoPrompt((8, 12)))
    assert "none prompt on a canvas of 8 x 12, 0 trained values" in title(figure)
    assert "no picture shows this prompt" in [text.get_text() for text in figure.texts]
    check(figure)


def test_a_prompt_of_any_class_is_drawn_as_it_says():
    class Tint(VisualPrompt):
        kind = "tint"

        def forward(self, images):
            return images.where(self.learned().mask.logical_not(), 0.75)

        def learned(self):
            pixels, mask = torch.full((3, 6, 6), 0.75), torch.zeros(6, 6, dtype=torch.bool)
            mask[:2] = True
            return Learned(pixels, mask, torch.full((3, 6, 6), 0.25), added=False)

    figure = plots.plot_prompt(Tint((6, 6), (6, 6)))
    picture, change = (ax.images[0].get_array() for ax in figure.axes[:2])
    np.testing.assert_allclose(picture[:2], [0.75, 0.75, 0.75, 1.0] * np.ones((2, 6, 1)))
    np.testing.assert_allclose(change[:2], 0.5)
    assert np.ma.getmaskarray(change)[2:].all() and "tint prompt" in title(figure)


def test_values_that_are_not_finite_are_named():
    prompt = FullPrompt((8, 8))
    with torch.no_grad():
        prompt.delta[0, 0, :3] = torch.tensor([float("nan"), float("inf"), 1.0])
    figure = plots.plot_prompt(prompt)
    assert "2 VALUES ARE NOT FINITE" in title(figure)
    check(figure)


# Examples and gallery


def test_examples_are_above_their_canvases_and_are_clamped():
    images, prompted = torch.rand(3, 3, 8, 8), torch.randn(3, 3, 16, 20)
    kept = images.clone(), prompted.clone()
    figure = plots.plot_examples(images, prompted, ["$one_", "猫", "three"])
    assert len(figure.axes) == 6
    np.testing.assert_allclose(figure.axes[1].images[0].get_array(), images[1].permute(1, 2, 0))
    np.testing.assert_allclose(figure.axes[4].images[0].get_array(), prompted[1].clamp(0, 1).permute(1, 2, 0))
    assert "clamped" in title(figure) and "16 x 20" in figure.axes[3].get_ylabel()
    assert torch.equal(images, kept[0]) and torch.equal(prompted, kept[1])
    check(figure)


def test_examples_beyond_the_bound_are_cut_and_the_title_says_so():
    images = (np.random.default_rng(0).random((11, 3, 4, 4)) * 255).astype(np.uint8)
    figure = plots.plot_examples(images, images)
    assert len(figure.axes) == 16
    assert "first 8 of 11" in title(figure) and "clamped" not in title(figure)
    for wrong in ((images[:0], images[:0], None), (images, images[:3], None), (images, images, ["one"])):
        with pytest.raises(ValueError, match="one length above 0"):
            plots.plot_examples(*wrong)


def test_gallery_has_a_card_for_each_class():
    mapping = FrequencyMapping(30, 5)
    mapping.fit(counted(random_counts(30, 5)))
    rows = rows_of(mapping, 30, classes(5))
    examples = [torch.rand(3, 8, 12), None, torch.rand(3, 9, 5), torch.rand(3, 4, 4), torch.rand(3, 4, 4)]
    figure = plots.plot_gallery(rows, examples, [None, *examples[:4]])
    for ax, row in zip(figure.axes, rows, strict=False):
        text = " ".join(" ".join(text.get_text() for text in ax.texts).split())
        assert row["class"] in text and row["label"] in text and f"{row['count']} images" in text
        assert f"{row['share']:.0%}" in text
    assert [len(ax.images) for ax in figure.axes[:5]] == [1, 1, 1, 2, 2]
    check(figure)


def test_gallery_of_a_mapping_without_counts_and_of_many_classes():
    rows = rows_of(FrequencyMapping(40, 30), 40, [*WEIRD, *classes(19)])
    figure = plots.plot_gallery(rows, [None] * 30)
    assert "first 24 of 30" in title(figure) and len(figure.axes) == 24
    assert {"not counted", "no source label"} <= {text.get_text() for text in figure.axes[0].texts}
    check(figure)
    with pytest.raises(ValueError, match="29 examples"):
        plots.plot_gallery(rows, [None] * 29)
    with pytest.raises(ValueError, match="empty"):
        plots.plot_gallery([], [])


def test_gallery_of_several_labels_a_class_ranks_them_and_leaves_out_missing_ones():
    links = taken([[4, 2, 7], [1, -1, -1]], [[0.5, 0.3, 0.2], [1.0, 0.0, 0.0]])
    figure = plots.plot_gallery(mapping_rows(links, space(9).names, ["cat", "dog"]), [None, None])
    cat, dog = (" ".join(" ".join(t.get_text() for t in ax.texts).split()) for ax in figure.axes)
    assert "label 4 (0.5), label 2 (0.3), label 7 (0.2)" in cat
    assert "label 1 (1)" in dog and dog.count("label") == 1
    check(figure)


# The mapping


def test_mapping_outlines_the_label_of_each_class_and_nothing_else():
    counts = random_counts(50, 6)
    index = assign_greedy(counted(counts))
    figure = plots.plot_mapping(counted(counts), taken(index), space(50), classes(6), max_labels=12)
    ax = figure.axes[0]
    rows, columns = ticks(ax, "y"), ticks(ax, "x")
    assert columns == classes(6)
    assert len(rows) == 13 and rows[-1] == "the other 38 labels"
    assert {(rows[row], column) for row, column in outlined(ax)} == {
        (f"label {label}", target) for target, label in enumerate(index.tolist())
    }
    shares = np.asarray(ax.images[0].get_array())
    label = [int(row.split()[1]) for row in rows[:-1]]
    np.testing.assert_allclose(shares[:-1], counts[label].numpy() / counts.sum(0).numpy())
    np.testing.assert_allclose(shares.sum(0), 1)
    numbers = np.zeros((13, 6), dtype=int)
    for text in ax.texts:
        column, row = text.get_position()
        numbers[row, column] = int(text.get_text())
    np.testing.assert_array_equal(numbers[:-1], counts[label])
    np.testing.assert_array_equal(numbers.sum(0), counts.sum(0))
    hits = counts[index, torch.arange(6)].sum() / counts.sum()
    assert f"{hits:.1%} of all images are seen as the label taken" in title(figure)
    check(figure)


def test_several_labels_a_class_are_outlined_and_the_first_one_strongest():
    counts = torch.zeros(12, 3, dtype=torch.int64)
    counts[5, 0], counts[2, 0], counts[9, 0] = 6, 3, 1
    counts[2, 1], counts[8, 1] = 4, 5
    counts[8, 2], counts[0, 2] = 2, 7
    index = torch.tensor([[5, 2, 9], [2, 8, -1], [-1, -1, -1]])
    figure = plots.plot_mapping(counted(counts), taken(index), space(12), ["cat", "dog", "elk"])
    ax = figure.axes[0]
    names = ticks(ax, "y")
    assert names == ["label 5", "label 2", "label 9", "label 8", "label 0"]
    found = {(names[row], column): width for (row, column), width in outlined(ax).items()}
    strong, faint = [("label 5", 0), ("label 2", 1)], [("label 2", 0), ("label 9", 0), ("label 8", 1)]
    assert found.keys() == {*strong, *faint}
    assert min(found[cell] for cell in strong) > max(found[cell] for cell in faint)
    np.testing.assert_allclose(np.asarray(ax.images[0].get_array())[1], [0.3, 4 / 9, 0])
    assert f"{19 / 28:.1%} of all images are seen as a label taken" in title(figure)
    check(figure)


def test_the_first_labels_come_before_further_ones_where_not_all_fit():
    index = torch.arange(60).reshape(20, 3)
    links = taken(index)
    figure = plots.plot_mapping(counted(random_counts(80, 20)), links, space(80), classes(20), max_labels=24)
    names = ticks(figure.axes[0], "y")
    assert len(names) == 25 and names[-1] == "the other 56 labels"
    firsts = [f"label {label}" for label in index[:, 0]]
    assert set(firsts) <= set(names) and [f"label {label}" for label in (1, 4, 7, 10)] == [
        name for name in names[:-1] if name not in firsts
    ]
    assert names[:4] == ["label 0", "label 1", "label 3", "label 4"]
    check(figure)


def test_a_large_label_space_is_drawn_without_its_whole_table(monkeypatch):
    labels = LabelSpace.from_templates([f"{i} {{}}" for i in range(81)], classes(1000))
    generator = torch.Generator().manual_seed(0)
    seen, of = torch.randint(81_000, (5000,), generator=generator), torch.arange(5000) % 1000
    counts = Counts(81_000, 1000)
    counts.add_cells(seen * 1000 + of, torch.ones(5000, dtype=torch.int64))
    links = taken(torch.arange(1000)[:, None] + 1000 * torch.arange(5))
    largest = np.zeros

    def zeros(shape, *args, **options):
        assert np.prod(shape) < 1_000_000
        return largest(shape, *args, **options)

    monkeypatch.setattr(np, "zeros", zeros)
    for draw in (plots.plot_mapping, plots.plot_templates):
        figure = draw(counts, links, labels, classes(1000))
        assert "30 of 1000 classes" in title(figure) and len(outlined(figure.axes[0])) >= 30
    with pytest.raises(ValueError, match="S, T"):
        plots.plot_mapping(Counts(81_000, 999), links, labels, classes(1000))


def test_mapping_shows_the_labels_seen_most_after_those_taken():
    counts = torch.zeros(20, 2, dtype=torch.int64)
    counts[3, 0], counts[9, 1], counts[11, 1], counts[5, 0], counts[6, 0] = 9, 8, 7, 6, 5
    counts, links = counted(counts), taken([3, 9])
    figure = plots.plot_mapping(counts, links, space(20), classes(2), max_labels=4)
    assert ticks(figure.axes[0], "y") == ["label 3", "label 9", "label 11", "label 5", "the other 16 labels"]
    figure = plots.plot_mapping(counts, links, space(20), classes(2))
    assert ticks(figure.axes[0], "y") == ["label 3", "label 9", "label 11", "label 5", "label 6"]


def test_many_classes_are_cut_to_those_that_agree_least():
    counts = torch.zeros(400, 397, dtype=torch.int64)
    target = torch.arange(397)
    counts[target, target] = 10
    counts[399, 100:120] = 30
    counts, links = counted(counts), taken(target)
    figure = plots.plot_mapping(counts, links, space(400), classes(397), max_classes=20)
    assert "20 of 397 classes" in title(figure)
    assert ticks(figure.axes[0], "x") == [f"class {i}" for i in range(100, 120)]
    assert len(outlined(figure.axes[0])) == 20
    assert "30 of 397 classes" in title(plots.plot_mapping(counts, links, space(400), classes(397)))


@pytest.mark.parametrize("number", [1, 11])
def test_mapping_without_a_count_and_without_a_label(number):
    counts, none = torch.zeros(30, number, dtype=torch.int64), taken(torch.full((number,), -1))
    links = taken(assign_greedy(counted(counts)))
    figure = plots.plot_mapping(counted(counts), links, space(30), WEIRD[:number])
    assert "no images" in title(figure)
    assert np.isfinite(np.asarray(figure.axes[0].images[0].get_array())).all()
    check(figure)
    with pytest.raises(ValueError, match="no class has"):
        plots.plot_mapping(counted(counts), none, space(30), classes(number))
    counts[4] = 2
    figure = plots.plot_mapping(counted(counts), none, space(30), classes(number), max_classes=7)
    assert not outlined(figure.axes[0]) and "no class takes a label" in title(figure)
    assert ticks(figure.axes[0], "y") == ["label 4"] and len(ticks(figure.axes[0], "x")) == min(number, 7)
    assert ("the first 7 of 11 classes" in title(figure)) == (number > 7)


def test_wrong_shapes_are_refused():
    matrix, links = random_counts(20, 4), taken(range(4))
    with pytest.raises(ValueError, match=r"\(S, T\) = \(21, 4\)"):
        plots.plot_mapping(counted(matrix), links, space(21), classes(4))
    for wrong in ([0, 1, 2, 20], [0, 1, 2]):
        with pytest.raises(ValueError, match="4 rows of labels below 20"):
            plots.plot_mapping(counted(matrix), taken(wrong), space(20), classes(4))
    with pytest.raises(ValueError, match="plot_mapping"):
        plots.plot_templates(counted(matrix), links, space(20), classes(4))
    with pytest.raises(ValueError, match="T = 3"):
        plots.plot_confusion(matrix, classes(3))
    with pytest.raises(ValueError, match="4 classes, and there are 3"):
        plots.plot_moves(history(2), space(50), classes(3))


# Templates


TEMPLATES = ["a photo of a {}.", "a {} in $x_1$.", "itap of my {}."]


def test_templates_sum_over_class_names_and_mark_borrowed_names():
    names = ["cat", "dog"]
    labels = LabelSpace.from_templates(TEMPLATES, names)
    counts = counted([[5, 1], [3, 0], [0, 0], [0, 2], [0, 8], [1, 0]])  # template-major
    # The cat takes "a photo of a cat.", the dog "itap of my cat.".
    figure = plots.plot_templates(counts, taken([0, 4]), labels, names)
    ax = figure.axes[0]
    np.testing.assert_allclose(ax.images[0].get_array(), np.array([[8, 1], [0, 2], [1, 8]]) / [9, 11])
    assert ticks(ax, "y") == ["a photo of a {}.  (1)", "a {} in $x_1$.", "itap of my {}.  (1)"]
    assert ticks(ax, "x") == ["cat", "dog ← cat"]
    assert outlined(ax).keys() == {(0, 0), (2, 1)}
    assert [(line.get_xdata()[0] > 0.5, line.get_ydata()[0]) for line in ax.lines] == [(True, 2)]
    assert {"5/8", "8/8", "1", "2"} <= {text.get_text() for text in ax.texts}
    assert "2 of 3 in use" in title(figure) and title(figure).endswith("another class's name: 1")
    check(figure)


def test_texts_that_differ_between_classes_and_several_of_them():
    texts = {"cat": ["a photo of a {}.", "It purrs.", "It has whiskers."], "dog": ["a photo of a {}."]}
    labels = LabelSpace.from_texts(texts)  # the dog's only text is label 3
    counts = counted([[2, 0], [4, 0], [3, 1], [1, 9]])
    figure = plots.plot_templates(counts, taken([[1, 2], [3, -1]]), labels, ["cat", "dog"])
    ax = figure.axes[0]
    assert ticks(ax, "y") == ["a photo of a {}.  (1)", "It purrs.  (1)", "It has whiskers.  (1)"]
    np.testing.assert_allclose(ax.images[0].get_array(), [[0.3, 0.9], [0.4, 0], [0.3, 0.1]])
    widths = outlined(ax)
    assert widths.keys() == {(1, 0), (2, 0), (0, 1)} and widths[1, 0] == widths[0, 1] > widths[2, 0]
    assert {"4/4", "3/3", "9/9", "3"} <= {text.get_text() for text in ax.texts}
    assert title(figure).endswith("another class's name: 0")
    check(figure)


def test_eighty_one_templates_stay_readable():
    names = classes(10)
    labels = LabelSpace.from_templates([f"a photo, kind {i}, of a {{}}." for i in range(81)], names)
    counts = counted(random_counts(810, 10))
    figure = plots.plot_templates(counts, taken(assign_greedy(counts)), labels, names)
    ax = figure.axes[0]
    assert len(ticks(ax, "y")) == 81 and len(outlined(ax)) == 10
    assert min(tick.get_fontsize() for tick in ax.get_yticklabels()) >= 8
    assert not clipped(figure)


def test_templates_and_classes_are_cut_and_the_title_says_so():
    names = classes(40)
    labels = LabelSpace.from_templates([f"{i} {{}}" for i in range(30)], names)
    counts = torch.zeros(1200, 40, dtype=torch.int64)
    counts[29 * 40 + 1] = 3
    links = taken(torch.arange(40) + 7 * 40)
    figure = plots.plot_templates(counted(counts), links, labels, names, max_templates=4, max_classes=5)
    assert "5 of 40 classes" in title(figure) and "4 of 30 templates" in title(figure)
    rows = ticks(figure.axes[0], "y")
    assert "7 {}  (40)" in rows and "29 {}" in rows and len(rows) == 4
    assert len(outlined(figure.axes[0])) == 5


def test_texts_are_shown_by_their_weight_and_the_heaviest_is_named():
    texts = {"cat": ["a photo of a {}.", "It purrs.", "It has $w_1$."], "dog": ["It barks."]}
    links = Links(torch.tensor([[1, 0, 2], [3, -1, -1]]), torch.tensor([[0.5, 0.3, 0.2], [1.0, 0.0, 0.0]]))
    figure = plots.plot_texts(links, LabelSpace.from_texts(texts), ["cat", "dog"])
    ax = figure.axes[0]
    np.testing.assert_allclose(ax.images[0].get_array(), [[0.5, 0.3, 0.2], [1, 0, 0]])
    assert ticks(ax, "y") == ["cat", "dog"] and ticks(ax, "x") == ["1", "2", "3"]
    assert {"0.50", "0.30", "1.00"} <= {text.get_text() for text in ax.texts}
    foot = figure.get_supxlabel()
    assert foot.index("dog: It barks. (1.00)") < foot.index("cat: It purrs. (0.50)")
    check(figure)
    many = LabelSpace.from_texts({f"class {i}": ["a {}.", "the {}."] for i in range(30)})
    weight = torch.tensor([[0.5 + i / 100, 0.5 - i / 100] for i in range(30)])
    figure = plots.plot_texts(Links(torch.arange(60).view(30, 2), weight), many, classes(30), max_classes=5)
    assert "5 of 30 classes" in title(figure) and len(ticks(figure.axes[0], "y")) == 5
    with pytest.raises(ValueError, match="labels made of text"):
        plots.plot_texts(links, space(4), ["cat", "dog"])


# Confusion


def test_confusion_is_normalised_by_the_true_class_and_names_the_worst_pairs():
    confusion = np.array([[8, 2, 0], [0, 0, 0], [1, 39, 10]])
    figure = plots.plot_confusion(confusion, ["cat", "dog", "$f_x$"], worst=2)
    shares = figure.axes[0].images[0].get_array()
    np.testing.assert_allclose(shares, [[0.8, 0.2, 0], [0, 0, 0], [0.02, 0.78, 0.2]])
    foot = figure.get_supxlabel()
    assert (
        "$f_x$ → dog: 39 of 50 (78%)" in foot and "cat → dog: 2 of 10 (20%)" in foot and "→ cat" not in foot
    )
    assert "30.0% of 60 images right" in title(figure)
    check(figure)


@pytest.mark.parametrize("number", [1, 60, 397])
def test_confusion_of_any_size(number):
    figure = plots.plot_confusion(torch.eye(number, dtype=torch.int64) * 3, classes(number))
    ax = figure.axes[0]
    assert ticks(ax, "x") == ticks(ax, "y") == (classes(number) if number <= 60 else [])
    assert not figure.get_supxlabel()  # nothing is confused
    check(figure)


def test_confusion_of_no_images():
    figure = plots.plot_confusion(np.zeros((3, 3), dtype=int), classes(3))
    assert "no images" in title(figure) and not np.any(figure.axes[0].images[0].get_array())
    figure.draw_without_rendering()


# Epochs


def test_curves_mark_the_best_validation_and_the_moves_of_the_mapping():
    rows = history(10)
    kept = copy.deepcopy(rows)
    figure = plots.plot_curves(rows)
    upper, lower = figure.axes
    np.testing.assert_allclose(upper.lines[0].get_ydata(), [row["train_loss"] for row in rows])
    best = max(rows, key=lambda row: row["val_acc1"])
    star = next(line for line in lower.lines if line.get_marker() == "*")
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (best["epoch"], best["val_acc1"])
    legend = [text.get_text() for text in lower.get_legend().get_texts()]
    assert legend == [
        EPOCH_COLUMNS["train_acc1"],
        EPOCH_COLUMNS["val_acc1"],
        f"best validation: {best['val_acc1']:.1%}, epoch {best['epoch']}",
        "classes remapped (most: 2)",
    ]
    bars = lower.collections[0].get_segments()
    assert [bar[0][0] for bar in bars] == [1, 2]  # epoch 0 is the first choice
    assert bars[0][1][1] > bars[1][1][1]
    assert any("0.001" in text.get_text() for text in upper.texts)
    assert rows == kept
    check(figure)


@pytest.mark.parametrize(
    "rows",
    [
        [{"epoch": 0}],
        [{"epoch": 0, "train_loss": None, "train_acc1": None, "val_acc1": None, "lr": None}],
        history(1),
        [{"epoch": e, "train_loss": float("nan"), "train_acc1": 0.5, "val_acc1": None} for e in range(3)],
        [
            {"epoch": e, "train_loss": 1.0, "train_acc1": 0.0, "test_acc1": 0.0, "lr": 0.1 / (e + 1)}
            for e in range(40)
        ],
    ],
    ids=["nothing", "none", "one epoch", "not finite", "flat"],
)
def test_curves_of_what_is_there(rows):
    figure = plots.plot_curves(rows)
    check(figure)
    lost = any(np.isnan(row.get("train_loss") or 0) for row in rows)
    assert ("not finite from epoch 0" in figure.axes[0].get_ylabel()) == lost


def test_moves_change_colour_with_the_label_and_name_the_last():
    rows = [{"epoch": e, "source_index": index} for e, index in enumerate([[0, -1], [1, 5], [0, 5], [2, 5]])]
    figure = plots.plot_moves([*rows, {"epoch": 4}], space(6), ["cat", "$dog_"])
    ax = figure.axes[0]
    strips = ax.collections[0].get_array().reshape(2, 4)
    # The cat: label 2 at the end, 0 before it, and 1, which ended before 0 did. The dog: no label, then 5.
    np.testing.assert_array_equal(strips[0], [1, 2, 1, 0])
    np.testing.assert_array_equal(np.ma.getmaskarray(strips[1]), [True, False, False, False])
    np.testing.assert_array_equal(strips[1][1:], 0)
    assert ticks(ax, "y") == ["cat", "$dog_"]
    assert ticks(ax.child_axes[0], "y") == ["label 2", "label 5"]
    assert "0 of 2 never changed" in title(figure)
    colours = {to_hex(patch.get_facecolor()) for patch in ax.get_legend().get_patches()}
    assert len(colours) == 3
    check(figure)


def test_moves_of_many_classes_are_cut_to_those_that_changed_most():
    index = np.tile(np.arange(60), (12, 1))
    index[np.arange(12) % 2 == 0, 50] = 70
    figure = plots.plot_moves(
        [{"epoch": 2 * e, "source_index": row.tolist()} for e, row in enumerate(index)],
        space(80),
        classes(60),
    )
    assert "40 of 60 classes" in title(figure) and "59 of 60 never changed" in title(figure)
    assert ticks(figure.axes[0], "y")[0] == "class 50"
    check(figure)
    with pytest.raises(ValueError, match="source_index"):
        plots.plot_moves([{"epoch": 0}], space(3), classes(3))
    with pytest.raises(ValueError, match="empty"):
        plots.plot_curves([])


# What all have in common


def drawings(names: list[str]) -> dict:
    """Return, by name, the functions that draw into given axes, on small data."""
    number = len(names)
    labels = LabelSpace.from_templates(TEMPLATES, names)
    matrix = random_counts(3 * number, number)
    counts = counted(matrix)
    links = taken(assign_greedy(counts))
    return {
        "mapping": lambda ax: plots.plot_mapping(counts, links, labels, names, ax=ax),
        "templates": lambda ax: plots.plot_templates(counts, links, labels, names, ax=ax),
        "confusion": lambda ax: plots.plot_confusion(matrix[:number], names, ax=ax),
        "curves": lambda ax: plots.plot_curves(history(5), ax=ax),
        "moves": lambda ax: plots.plot_moves(history(3, number), space(200), names, ax=ax),
    }


@pytest.mark.parametrize("name", drawings(classes(4)))
@pytest.mark.parametrize("layout", ["constrained", "tight", "none", "subfigures"])
def test_given_axes_are_drawn_into(name, layout):
    figure = Figure(figsize=(9, 5), layout="constrained" if layout == "subfigures" else layout)
    if layout == "subfigures":
        ax, other = (part.subplots() for part in figure.subfigures(1, 2))
    else:
        ax, other = figure.subplots(1, 2)
    assert drawings(classes(4))[name](ax) is figure
    assert ax.has_data() and not other.has_data()
    assert figure.get_suptitle() == "" and (name == "curves" or ax.get_title())
    figure.draw_without_rendering()


@pytest.mark.parametrize("name", drawings(WEIRD))
def test_names_are_drawn_without_changes(name):
    figure = drawings(WEIRD)[name](None)
    assert not clipped(figure)
    if name != "curves":
        shown = ticks(figure.axes[0], "y" if name == "moves" else "x")
        assert [text.split(" ← ")[0] for text in shown[:3]] == WEIRD[:3]


def test_no_global_state_and_no_figure_is_kept(tmp_path):
    figure = drawings(classes(4))["mapping"](None)
    plots.save_figure(figure, tmp_path / "new" / "folder" / "a.png")
    gone = weakref.ref(figure)
    del figure
    gc.collect()
    assert gone() is None
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["a.png"]
    code = (
        "import sys, clipvp.results.plots; assert 'matplotlib' not in sys.modules and 'torch' not in sys.modules\n"
        "clipvp.results.plots.plot_curves([{'epoch': 0, 'train_loss': 1.0}])\n"
        "assert 'matplotlib.figure' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_saving_is_whole_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    figure = plots.plot_curves(history(2))

    def fail(aside, **_):
        aside.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        plots.save_figure(figure, path)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
    plots.save_figure(plots.plot_curves(history(2)), path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert (
        plots.save_figure(plots.plot_curves(history(2)), tmp_path / "a.svg").read_text().startswith("<?xml")
    )
    with pytest.raises(UserError, match="png, pdf, svg"):
        plots.save_figure(figure, tmp_path / "a.jpg")


def test_missing_matplotlib_is_one_line_of_advice(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"pip install 'clipvp\[plots\]'"):
        plots.plot_curves(history(2))


def test_text_is_shortened_wrapped_and_always_has_a_glyph():
    assert shorten("a  b\nc", 10) == "a b c"
    assert shorten("a" * 40, 10) == "a" * 9 + "…"
    assert max(map(len, wrap("some words " * 9, 1.0, 9).split("\n"))) <= 13
    assert wrap("", 1.0, 9) == ""
    texts, look = writing(["猫\u200d", "\x00\x1b[0m", "plain"])
    assert look["parse_math"] is False and texts[1:] == ["[0m", "plain"] and len(texts[0]) == 1


def test_accuracy_by_queries_has_a_line_for_each_run():
    rows = [{"epoch": place, "queries": 100 * place, "val_acc1": place / 10} for place in range(1, 4)]
    figure = plots.plot_queries({"one": rows, "two": rows[:2], "old": [{"epoch": 1, "val_acc1": 0.5}]})
    (ax,) = figure.axes
    one, two, old = ax.lines
    assert list(one.get_xdata()) == [100, 200, 300] and list(two.get_ydata()) == [0.1, 0.2]
    assert len(old.get_xdata()) == 0 and ax.get_xscale() == "log"
    with pytest.raises(ValueError, match="no run has rows with queries and test_acc1"):
        plots.plot_queries({"one": rows}, "test_acc1")
