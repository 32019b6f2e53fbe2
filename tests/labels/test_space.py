"""A label space of text says of each text its class, its wording and its group, and is saved and read as it is."""

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipvp.labels.space import LabelSpace
from clipvp.registry import UserError

NAMES = st.lists(
    st.text("abcÄ青 {}", min_size=1, max_size=6).filter(str.strip), min_size=1, max_size=5, unique=True
)
TEMPLATES = st.lists(
    st.sampled_from(["{}", "a {}.", "the {}!", "{} in the wild", "ein {}", "{{}}"]),
    min_size=1,
    max_size=4,
    unique=True,
)
TEXTS = st.lists(
    st.sampled_from(["a {}.", "{}", "It purrs.", "Es bellt.", "the {} and the {}"]), min_size=1, max_size=4
)


@st.composite
def ragged(draw) -> tuple[dict[str, list[str]], dict[str, list[str]] | None]:
    """Draw the texts of each class, any number, maybe the same one twice, and maybe their groups."""
    texts = {name: draw(TEXTS) for name in draw(NAMES)}
    if not draw(st.booleans()):
        return texts, None
    group = st.sampled_from(["colour", "shape"])
    return texts, {
        name: draw(st.lists(group, min_size=len(own), max_size=len(own))) for name, own in texts.items()
    }


def again(labels: LabelSpace) -> LabelSpace:
    return LabelSpace.from_dict(json.loads(json.dumps(labels.to_dict())))


def check(labels: LabelSpace) -> None:
    """Each text is its wording, filled with the name of its class."""
    assert len(labels) == len(labels.class_of) == len(labels.wording_of)
    for text, target, wording in zip(labels.names, labels.class_of, labels.wording_of, strict=True):
        assert text == labels.wordings[wording].replace("{}", labels.class_names[target])
    assert set(labels.class_of) == set(range(len(labels.class_names)))
    assert len(set(labels.wordings)) == len(labels.wordings)


# Any number of texts a class


@settings(max_examples=200, deadline=None)
@given(ragged())
def test_texts_come_class_by_class_in_their_order(given_texts):
    texts, groups = given_texts
    labels = LabelSpace.from_texts(texts, groups)
    check(labels)
    assert labels.is_text and labels.class_names == tuple(texts)
    place = 0
    for target, (name, own) in enumerate(texts.items()):
        for index, text in enumerate(own):
            assert labels.names[place] == text.replace("{}", name)
            assert labels.class_of[place] == target and labels.wordings[labels.wording_of[place]] == text
            assert not groups or labels.groups[place] == groups[name][index]
            place += 1
    assert place == len(labels) and bool(labels.groups) == bool(groups)


@settings(max_examples=200, deadline=None)
@given(ragged())
def test_ragged_texts_are_saved_and_read_as_they_are(given_texts):
    labels = LabelSpace.from_texts(*given_texts)
    assert again(labels) == labels
    assert again(labels).to_dict() == labels.to_dict()


def test_the_same_wording_is_kept_once():
    labels = LabelSpace.from_texts({"cat": ["a {}.", "It purrs."], "dog": ["a {}.", "a {}."]})
    assert labels.names == ("a cat.", "It purrs.", "a dog.", "a dog.")
    assert labels.class_of == (0, 0, 1, 1)
    assert labels.wordings == ("a {}.", "It purrs.") and labels.wording_of == (0, 1, 0, 0)
    assert labels.groups == () and labels.templates == () and not labels.is_grid


def test_groups_are_those_of_the_texts():
    texts = {"cat": ["a {}.", "It purrs."], "dog": ["a {}."]}
    labels = LabelSpace.from_texts(texts, {"dog": ["name"], "cat": ["name", "sound"]})
    assert labels.groups == ("name", "sound", "name")


# A grid of templates and classes


@settings(max_examples=100, deadline=None)
@given(TEMPLATES, NAMES)
def test_a_grid_is_template_major(templates, names):
    labels = LabelSpace.from_templates(templates, names)
    check(labels)
    assert labels.is_grid and labels.templates == tuple(templates)
    for place, text in enumerate(labels.names):
        template, target = divmod(place, len(names))
        assert (labels.wording_of[place], labels.class_of[place]) == (template, target)
        assert text == templates[template].replace("{}", names[target])


@settings(max_examples=100, deadline=None)
@given(TEMPLATES, NAMES)
def test_a_grid_is_saved_by_its_templates_and_class_names(templates, names):
    labels = LabelSpace.from_templates(templates, names)
    assert labels.to_dict() == {"class_names": names, "templates": templates}
    assert again(labels) == labels and again(labels).is_grid


@settings(max_examples=200, deadline=None)
@given(ragged())
def test_only_what_its_templates_make_is_a_grid(given_texts):
    """``is_grid`` is what ``from_templates`` would give, so that a grid is saved by its templates without loss."""
    labels = LabelSpace.from_texts(*given_texts)
    is_template = all(wording.count("{}") == 1 for wording in labels.wordings)
    made = LabelSpace.from_templates(labels.wordings, labels.class_names) if is_template else None
    assert labels.is_grid == (made == labels)
    assert labels.templates == (labels.wordings if labels.is_grid else ())


def test_another_order_or_groups_do_not_make_a_grid():
    grid = LabelSpace.from_templates(["a {}.", "the {}"], ["cat", "dog"])
    by_class = LabelSpace.from_texts({name: ["a {}.", "the {}"] for name in ("cat", "dog")})
    assert sorted(by_class.names) == sorted(grid.names) and not by_class.is_grid
    assert again(by_class) == by_class
    grouped = replace(grid, groups=("x",) * 4)
    assert grid.is_grid and not grouped.is_grid and again(grouped) == grouped
    assert LabelSpace.from_texts({"cat": ["a {}."], "dog": ["a {}."]}).is_grid  # one template is both


def test_a_closed_label_set_has_no_texts():
    labels = LabelSpace(("cat", "dog"))
    assert len(labels) == 2 and not labels.is_text and not labels.is_grid
    assert labels.templates == () and labels.to_dict() == {}


# Errors


@pytest.mark.parametrize(
    "texts, groups, words",
    [
        ({"cat": []}, None, "class 'cat' has no texts"),
        ({"cat": ["a {}.", " "]}, None, "class 'cat' has an empty text"),
        ({" ": ["a {}."]}, None, "class name ' ' is empty"),
        ({"cat": ["a {}.", "b"]}, {"cat": ["x"]}, "class 'cat' has 2 texts and 1 groups"),
        ({"cat": ["a {}."], "dog": ["b"]}, {"cat": ["x"]}, "class 'dog' has 1 texts and 0 groups"),
    ],
)
def test_wrong_texts_are_named(texts, groups, words):
    with pytest.raises(UserError) as error:
        LabelSpace.from_texts(texts, groups)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "templates, names, words",
    [
        (["a photo"], ["cat"], "'a photo' needs exactly one {}"),
        (["{} {}"], ["cat"], "'{} {}' needs exactly one {}"),
        (["{}"], ["cat", ""], "'' is empty"),
        (["{}"], "cat", "give a list of names"),
    ],
)
def test_wrong_templates_and_names_are_named(templates, names, words):
    with pytest.raises(UserError) as error:
        LabelSpace.from_templates(templates, names)
    assert words in str(error.value)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"class_of": (0, 0)}, "a class and a wording each"),
        ({"wording_of": ()}, "a class and a wording each"),
        ({"class_of": (0, 0, 0)}, "each class needs one text or more"),
        ({"class_of": (0, 1, 2)}, "each class needs one text or more"),
        ({"wording_of": (0, 1, 3)}, "one of the 3 wordings"),
        ({"wording_of": (0, 1, -1)}, "one of the 3 wordings"),
        ({"groups": ("x",)}, "3 texts need a group each, got 1"),
    ],
)
def test_parts_that_do_not_fit_each_other_are_refused(change, words):
    labels = LabelSpace.from_texts({"cat": ["a {}.", "b"], "dog": ["c"]})
    with pytest.raises(ValueError, match=words):
        replace(labels, **change)


ODD = st.sampled_from([None, 1, -1, 1.5, "x", "", [], [0], [0, 5, 0], [0, -1, 0], ["a"], [None], {}, [[]]])


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["ragged", "grid"]), st.data())
def test_values_that_are_no_texts_are_one_clear_error(kind, data):
    labels = {
        "ragged": LabelSpace.from_texts({"cat": ["a {}.", "b"], "dog": ["c"]}),
        "grid": LabelSpace.from_templates(["a {}.", "{}"], ["cat", "dog"]),
    }[kind]
    values = labels.to_dict()
    key = data.draw(st.sampled_from(sorted(values)))
    if data.draw(st.booleans()):
        del values[key]
    else:
        values[key] = data.draw(ODD)
    try:
        read = LabelSpace.from_dict(values)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        check(read)
