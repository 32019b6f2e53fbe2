"""A bank of texts: files, names, what is left out, the draw, and what a run makes of it."""

import json
from dataclasses import replace

import pytest
from conftest import trained

from clipvp import PromptedClassifier, UserError, build_classifier, load_source
from clipvp.labels.bank import read_bank
from clipvp.labels.space import LabelSpace
from clipvp.labels.text_files import bank_names
from clipvp.training.checkpoint import texts_hash

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


def test_sentences_without_punctuation_are_told_by_their_length(tmp_path):
    texts = ["The bird has a long tail and two ears that can be seen from afar", "The bird is", "x" * 80]
    bank = read_bank(written(tmp_path / "a.json", {"a": texts}), ["a"])
    assert bank.texts["a"] == [texts[0], texts[2]] and bank.dropped[0].why == "shorter than 20 characters"


PHRASES = [
    "six petals",
    "fur",
    "a type of flower that grows in the mountains",
    "often grows wild",
    "A {} with thorns",
]
WRAPPED = [
    "A photo of a {}, which has six petals.",
    "A photo of a {}, which has fur.",
    "A photo of a {}, which is a type of flower that grows in the mountains.",
    "A photo of a {}, which often grows wild.",
    "A {} with thorns",
]


def test_phrases_stay_and_a_template_takes_them(tmp_path):
    file = written(tmp_path / "a.json", {"rose": PHRASES, "tulip": ["a tulip's cup"]})
    bank = read_bank(file, ["rose", "tulip"])
    assert bank.texts["rose"] == PHRASES and not bank.dropped
    with pytest.warns(
        UserWarning, match="4 of 6 texts are phrases without the name of their class, which mapping.phr"
    ):
        bank.warn()
    bank = read_bank(file, ["rose", "tulip"], phrase_template="A photo of a {}, which is/has {text}.")
    assert bank.texts["rose"] == WRAPPED and bank.texts["tulip"] == [
        "A photo of a {}, which is a tulip's cup."
    ]
    bank.warn()  # of nothing
    assert bank.label_space().names[0] == "A photo of a rose, which has six petals."
    assert read_bank(file, ["rose"], phrase_template="{}: {text}").texts["rose"][1] == "{}: fur"


def test_a_template_of_phrases_leaves_sentences_alone(tmp_path):
    files = {
        "phrases": written(tmp_path / "a.json", {"rose": ["six petals"]}),
        "sentences": written(tmp_path / "b.json", {"rose": ["A rose has petals."]}),
    }
    bank = read_bank(files, ["rose"], phrase_template="{}: {text}")
    assert bank.texts["rose"] == ["{}: six petals", "A rose has petals."]
    with pytest.raises(UserError, match="phrase_template: mapping.texts holds sentences and no phrases"):
        read_bank(files["sentences"], ["rose"], phrase_template="{}: {text}")


@pytest.mark.parametrize("names", [["C", "C++"], ["C++", "C"]])
def test_an_exact_name_comes_first(tmp_path, names):
    file = written(tmp_path / "a.json", {"C": ["A language."], "C++": ["A larger one."], "c ": ["Not it."]})
    bank = read_bank(file, names)
    assert (bank.texts["C"], bank.texts["C++"]) == (["A language."], ["A larger one."]) and bank.surplus == [
        "c "
    ]


@pytest.mark.parametrize(
    "found, names, words",
    [
        (["C"], ["C", "C++"], "has no texts of 'C[+][+]'"),
        (["C", "C#"], ["C", "C++"], "'C', 'C#' in the file and 'C', 'C[+][+]' in the task are too alike"),
        (["c."], ["C", "C++"], "'c.' in the file and 'C', 'C[+][+]' in the task are too alike"),
        (["TV", "Tv"], ["tv"], "'TV', 'Tv' in the file and 'tv' in the task are too alike"),
        (["\N{DOG FACE}"], ["\N{CAT FACE}"], "has no texts of '\N{CAT FACE}'"),
    ],
)
def test_names_that_fit_several_ways_are_one_line(tmp_path, found, names, words):
    file = written(tmp_path / "a.json", {name: ["It is a thing."] for name in found})
    with pytest.raises(UserError, match=words) as error:
        read_bank(file, names)
    assert "\n" not in str(error.value)


def test_names_of_which_nothing_is_left_are_matched_as_they_are(tmp_path):
    cat, dog = "\N{CAT FACE}", "\N{DOG FACE}"
    file = written(tmp_path / "a.json", {dog: ["It barks."], cat: ["It purrs."]})
    assert read_bank(file, [cat, dog]).texts == {cat: ["It purrs."], dog: ["It barks."]}


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
    (tmp_path / "a.csv").write_bytes(b"class,text\rb,Small.\ra,Tall.\r")  # lines end with \r alone
    assert read_bank(file, ["a", "b"]).texts == {"a": ["Tall."], "b": ["Small."]}


def test_a_field_that_is_too_large_is_one_line(tmp_path):
    file = written(tmp_path / "a.csv", f"class,text\na,Tall.\na,{'x' * 140_000}\n")
    with pytest.raises(UserError, match=r"a\.csv' is damaged: line 3: field larger than field limit"):
        read_bank(file, ["a"])


def test_a_quote_that_does_not_end_is_refused(tmp_path):
    file = written(tmp_path / "a.csv", 'class,text\na,"Tall.\nb,Small.\n')
    with pytest.raises(UserError, match=r"a\.csv' is damaged: line 3: unexpected end of data"):
        read_bank(file, ["a", "b"])


def test_a_draw_depends_on_its_seed_alone(tmp_path):
    file = written(tmp_path / "a.json", {name: [f"{name} {i}." for i in range(30)] for name in "ab"})
    one, again, other = (read_bank(file, ["a", "b"], per_class=5, seed=seed) for seed in (3, 3, 4))
    assert one == again and one.texts != other.texts
    assert all(len(set(own)) == 5 for own in one.texts.values())
    assert len(read_bank(file, ["a"], per_class=99).texts["a"]) == 30
    numbers = [[text.split()[1] for text in one.texts[name]] for name in "ab"]
    assert numbers[0] != numbers[1]  # classes do not draw alike


def test_a_draw_does_not_depend_on_the_other_classes(tmp_path):
    file = written(tmp_path / "a.json", {name: [f"{name} {i}." for i in range(30)] for name in "abc"})
    whole, part = (
        read_bank(file, names, per_class=5, seed=3).texts for names in (["a", "b", "c"], ["C", "b"])
    )
    assert part["b"] == whole["b"] and part["C"] == whole["c"]


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
        ('{"cat": ["A pet."], "dog": ["A pet."], "cat": ["Furry."]}', ["damaged", "'cat' is there twice"]),
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
    assert source.labels.left_out == (("cat", "word " * 200, "longer than the model's context"),)
    space = LabelSpace.from_texts({"cat": ["word " * 200], "dog": ["A pet too."]})
    with pytest.raises(UserError, match="class 'cat' has no text that is short enough"):
        load_source(tiny_model("hf_clip"), labels=lambda: space)


def test_a_class_without_a_short_text_of_a_group_is_named(config, tiny_task, tiny_model, tmp_path):
    names = tiny_task.class_names
    paths = {
        group: written(tmp_path / f"{group}.json", {name: [f"{group} of {name}."] for name in names})
        for group in ("des", "dist")
    }
    long = {name: ["word " * 200 + "."] if name == names[1] else ["It is."] for name in names}
    run = config(mapping={"kind": "text_pool", "texts": paths, "group_weights": {"des": 0.7, "dist": 0.3}})
    run.source.name, run.source.canvas = tiny_model("open_clip_vit"), None
    for texts, first in ((long, names[1]), (dict.fromkeys(names, long[names[1]]), names[0])):
        written(tmp_path / "dist.json", texts)
        with pytest.raises(
            UserError, match=f"class '{first}' has no text of the group 'dist' that is short enough"
        ):
            build_classifier(run, tiny_task)


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


def test_what_a_run_left_out_is_saved(config, tiny_task, tiny_model, tmp_path):
    names = tiny_task.class_names
    texts = {name: [f"It is a {name}.", "Cut", "word " * 200 + "."] for name in names}
    file = written(tmp_path / "texts.json", texts)
    run = config(mapping={"kind": "text_pool", "texts": file}, train={"epochs": 1})
    run.source.name, run.source.canvas = tiny_model("open_clip_vit"), None
    with pytest.warns(UserWarning, match="left out"):
        classifier, _ = trained(run, tiny_task)
    left_out = PromptedClassifier.from_pretrained(tmp_path / "run" / "prompt").source.labels.left_out
    assert left_out == classifier.source.labels.left_out and len(left_out) == 2 * len(names)
    assert {text.why for text in left_out} == {"cut off", "longer than the model's context"}
    labels = classifier.source.labels  # a run goes on whatever was left out of its files
    assert texts_hash(labels) == texts_hash(replace(labels, left_out=()))
