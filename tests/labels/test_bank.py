"""A bank of texts: files, names, what is left out, the draw, and what a run makes of it."""

import json

import pytest
from conftest import trained

from clipvp import PromptedClassifier, UserError, build_classifier, load_source
from clipvp.labels.bank import bank_names, read_bank
from clipvp.labels.space import LabelSpace

LONG = "It is a thing of some length."


def written(path, values) -> str:
    path.write_text(json.dumps(values) if path.suffix == ".json" else values)
    return str(path)


def test_classes_are_matched_without_case_and_punctuation(tmp_path):
    file = written(
        tmp_path / "a.json", {"Great-White_shark": ["A big fish."], "TV.": ["A screen."], "x": ["An x."]}
    )
    bank = read_bank(file, ["great white shark", "tv"])
    assert bank.texts == {"great white shark": ["A big fish."], "tv": ["A screen."]} and bank.surplus == ["x"]
    with pytest.warns(UserWarning, match="does not have the classes 'x'"):
        bank.warn()
    assert bank.label_space() == LabelSpace.from_texts(bank.texts)


def test_what_is_left_out_is_counted_with_its_reason(tmp_path):
    texts = ["It is red.", " ", "It is red.", "It has a long", "  Two   spaces. "]
    bank = read_bank(written(tmp_path / "a.json", {"a": texts}), ["a"])
    assert bank.texts["a"] == ["It is red.", "Two spaces."]
    assert [(text.text, text.why) for text in bank.dropped] == [
        ("", "empty"),
        ("It is red.", "given twice"),
        ("It has a long", "cut off"),
    ]
    with pytest.warns(UserWarning, match="3 of 5 texts are left out .1 empty, 1 given twice, 1 cut off."):
        bank.warn()


def test_without_punctuation_the_length_tells(tmp_path):
    texts = ["a long tail and two ears", "tail", "white paws and a pink nose"]
    bank = read_bank(written(tmp_path / "a.json", {"a": texts}), ["a"])
    assert bank.texts["a"] == [texts[0], texts[2]] and bank.dropped[0].why == "shorter than 20 characters"


def test_files_of_a_folder_and_a_map_are_groups(tmp_path):
    paths = {
        group: written(tmp_path / f"{group}.json", {name: [f"{group} of {name}."] for name in "ab"})
        for group in ("des", "dist")
    }
    by_map, by_folder = read_bank(paths, ["a", "b"]), read_bank(str(tmp_path), ["a", "b"])
    assert by_map == by_folder and by_map.groups["b"] == ["des", "dist"]
    space = read_bank(paths, ["a", "b"], templates=["a photo of a {}."]).label_space()
    assert space.groups == ("des", "dist", "templates") * 2
    assert space.names[2] == "a photo of a a." and space.class_of == (0, 0, 0, 1, 1, 1)


def test_a_csv_file(tmp_path):
    file = written(tmp_path / "a.csv", 'class,text\nb,"Small, and round."\na,Tall.\nb,Blue.\n')
    assert read_bank(file, ["a", "b"]).texts == {"a": ["Tall."], "b": ["Small, and round.", "Blue."]}


def test_a_draw_depends_on_its_seed_alone(tmp_path):
    file = written(tmp_path / "a.json", {name: [f"{name} {i}." for i in range(30)] for name in "ab"})
    one, again, other = (read_bank(file, ["a", "b"], per_class=5, seed=seed) for seed in (3, 3, 4))
    assert one == again and one.texts != other.texts
    assert all(len(set(own)) == 5 for own in one.texts.values())
    assert len(read_bank(file, ["a"], per_class=99).texts["a"]) == 30


def test_the_banks_of_the_package():
    assert bank_names() == ["cifar10", "digits", "waffle"]
    cifar = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    digits = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    for name, classes in (("cifar10", cifar), ("digits", digits)):
        bank = read_bank(name, classes)
        assert not bank.dropped and not bank.surplus
        assert {group for own in bank.groups.values() for group in own} == {"looks", "differs"}
        assert min(map(len, bank.texts.values())) >= 9


def test_random_words_are_the_same_for_every_class():
    bank = read_bank("waffle", ["cat", "dog"], seed=1)
    assert bank.texts["cat"] == bank.texts["dog"] and len(bank.texts["cat"]) == 15
    assert (
        bank.label_space().is_text and read_bank("waffle", ["cat"], seed=2).texts["cat"] != bank.texts["cat"]
    )
    assert all(text.count("{}") == 1 for text in bank.texts["cat"])


@pytest.mark.parametrize(
    "given, words",
    [
        ({"cat": ["A pet."]}, ["no texts of 'dog'", "allowed: cat"]),
        ({"cat": ["A pet."], "dog": []}, ["no text that can be used for 'dog'"]),
        ({"cat": ["A pet."], "dog": ["  "]}, ["no text that can be used for 'dog'"]),
        ({"cat": "A pet.", "dog": ["A pet."]}, ["lists of texts"]),
        ({"cat": ["A pet."], "Cat": ["A pet."], "dog": ["A pet."]}, ["'cat' and 'Cat'"]),
        ("[1]", ["lists of texts"]),
        ("{", ["damaged"]),
    ],
)
def test_a_wrong_file_is_one_line(given, words, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(given if isinstance(given, str) else json.dumps(given))
    with pytest.raises(UserError) as error:
        read_bank(str(path), ["cat", "dog"])
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "given, words",
    [
        ("no.json", "cannot be read"),
        ("cifra10", "cifar10"),
        ({}, "the map is empty"),
        ({"des": "no.json"}, "cannot be read"),
    ],
)
def test_a_file_that_is_not_there_is_one_line(given, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        read_bank(given, ["cat"])


def test_equal_class_names_are_refused():
    with pytest.raises(UserError, match="two classes are named 'crane'"):
        read_bank("waffle", ["crane", "cat", "crane"])


def test_texts_that_are_too_long_are_left_out(tiny_model):
    space = LabelSpace.from_texts({"cat": ["A pet.", "word " * 200], "dog": ["A pet too."]})
    with pytest.warns(UserWarning, match="texts that are longer than the model's context are left out: 1"):
        source = load_source(tiny_model("hf_clip"), labels=lambda: space)
    assert source.labels.names == ("A pet.", "A pet too.") and len(source.text_features) == 2
    space = LabelSpace.from_texts({"cat": ["word " * 200], "dog": ["A pet too."]})
    with pytest.raises(UserError, match="class 'cat' has no text that is short enough"):
        load_source(tiny_model("hf_clip"), labels=lambda: space)


@pytest.mark.parametrize("kind", ["text_pool", "text_counts", "blm", "text_mixing", "frequency"])
def test_a_run_with_descriptions_is_saved_and_loaded(kind, config, tiny_task, tiny_model, tmp_path):
    names = tiny_task.class_names
    groups = {
        group: written(
            tmp_path / f"{group}.json",
            {name: [f"{group} {i} of {name}." for i in range(4 + i)] for i, name in enumerate(names)},
        )
        for group in ("des", "dist")
    }
    run = config(mapping={"kind": kind, "texts": groups, "texts_per_class": 4}, train={"epochs": 2})
    run.source.name, run.source.canvas = tiny_model("open_clip_vit"), None
    classifier, _ = trained(run, tiny_task)
    assert len(classifier.source.labels) == 2 * 4 * len(names)
    loaded = PromptedClassifier.from_pretrained(tmp_path / "run" / "prompt")
    assert loaded.source.labels == classifier.source.labels
    assert build_classifier(run, tiny_task).source.labels == classifier.source.labels
