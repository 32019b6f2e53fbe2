"""Templates and class names become texts in the right order, or an error that names the wrong template or class."""

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipvp import UserError
from clipvp.build import text_label_space
from clipvp.config.schema import MappingConfig
from clipvp.labels.space import LabelSpace
from clipvp.labels.templates import (
    PAPER_FIRST,
    clean_class_name,
    resolve_templates,
    template_set,
    template_sets,
    text_class_names,
)

# How many templates CLIP's authors published for each task.
PUBLISHED = {
    "caltech101": 34,
    "cifar10": 18,
    "cifar100": 18,
    "dtd": 8,
    "eurosat": 3,
    "fgvc_aircraft": 2,
    "flowers102": 1,
    "food101": 1,
    "gtsrb": 3,
    "mnist": 1,
    "oxford_pets": 1,
    "resisc45": 18,
    "stanford_cars": 8,
    "sun397": 2,
    "ucf101": 48,
}


# Sets


def test_the_sets_are_the_published_ones():
    assert {name: len(template_set(name)) for name in template_sets()} == {
        "paper": 81,
        "openai_imagenet": 80,
        "simple": 7,
        **PUBLISHED,
    }


@pytest.mark.parametrize("name", template_sets())
def test_every_template_of_a_set_has_one_placeholder_and_no_duplicate(name):
    templates = template_set(name)
    assert all(template.count("{}") == 1 for template in templates)
    assert not any("|" in template or "{a" in template for template in templates)
    assert len(set(templates)) == len(templates) and resolve_templates(name) == templates


def test_the_papers_set_is_its_first_template_and_then_the_80():
    import open_clip

    paper = template_set("paper")
    assert paper[0] == PAPER_FIRST == "This is a photo of a {}."
    assert paper[1:] == template_set("openai_imagenet")
    assert [text.replace("{}", "cat") for text in paper[1:]] == [
        template("cat") for template in open_clip.OPENAI_IMAGENET_TEMPLATES
    ]
    assert set(template_set("simple")) <= set(paper)


def test_alternatives_in_a_set_are_written_out():
    assert template_set("cifar10")[:2] == ("a photo of a {}.", "a photo of the {}.")
    assert template_set("mnist") == ('a photo of the number: "{}".',)
    assert set(template_set("sun397")) == {"a photo of a {}.", "a photo of the {}."}
    assert {"a photo of my {}.", "i love my {}!"} <= set(template_set("stanford_cars"))
    assert {"art of the {}.", "the origami {}.", "a {} in a video game."} <= set(template_set("caltech101"))


# Templates in a config


def test_templates_from_a_name_one_text_a_list_and_a_file(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("a {}.\n\n  das große {}!  \n", encoding="utf-8")
    assert resolve_templates(str(path)) == ("a {}.", "das große {}!")
    assert resolve_templates("a {}.") == ("a {}.",)
    assert resolve_templates(["a {}.", "b {}"]) == ("a {}.", "b {}")
    assert resolve_templates("simple") == template_set("simple")


@pytest.mark.parametrize(
    "given, words",
    [
        ("papr", ["template set", "'papr'", "did you mean 'paper'", "and 13 more"]),
        ("", ["template set"]),
        ([], ["mapping.templates is empty"]),
        (["a {}.", "a photo."], ["'a photo.' needs exactly one {}"]),
        (["{} and {}"], ["'{} and {}' needs exactly one {}"]),
        ("{} and {}", ["'{} and {}' needs exactly one {}"]),
        (["a {name}."], ["'a {name}.' needs exactly one {}"]),
        (["a {}.", "b {}.", "a {}."], ["'a {}.' is given twice"]),
        ("/no/such/file.txt", ["'/no/such/file.txt' cannot be read"]),
    ],
)
def test_wrong_templates_give_an_error_of_one_line(given, words):
    with pytest.raises(UserError) as error:
        resolve_templates(given)
    message = str(error.value)
    assert all(word in message for word in words) and "\n" not in message, message


@pytest.mark.parametrize("content", [b"", b"\n \n", b"a \xff {}"])
def test_a_file_without_templates_is_an_error(content, tmp_path):
    path = tmp_path / "mine.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match="mine.txt|mapping.templates is empty"):
        resolve_templates(str(path))


# Class names


@pytest.mark.parametrize(
    "given, clean",
    [
        ("forest", "forest"),
        ("Annual Crop", "annual crop"),
        ("AnnualCrop", "annual crop"),
        ("HerbaceousVegetation", "herbaceous vegetation"),
        ("ApplyEyeMakeup", "apply eye makeup"),
        ("Black_footed_Albatross", "black footed albatross"),
        ("number_zero", "number zero"),
        ("  two   words ", "two words"),
        ("737-200", "737-200"),
        ("Boeing_717", "boeing 717"),
        ("McLaren", "mclaren"),
        ("BMW_3_Series_Sedan_2012", "bmw 3 series sedan 2012"),
        ("7", "7"),
        ("2024.5", "2024.5"),
        ("Saint-Bernard", "saint-bernard"),
        ("Übergröße", "übergröße"),
        ("T-shirt/top", "t-shirt/top"),
    ],
)
def test_class_names_become_words(given, clean):
    assert clean_class_name(given) == clean
    assert clean_class_name(clean) == clean


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=20))
def test_a_cleaned_name_is_lower_case_words(name):
    clean = clean_class_name(name)
    assert clean == " ".join(clean.split()) and "_" not in clean and "\n" not in clean
    assert clean == clean.lower()


def test_names_of_the_config_replace_those_of_the_task_unchanged():
    names = text_class_names(["Zero", "ONE", "Two"], {"ONE": "the number One", "Two": "2"})
    assert names == ["zero", "the number One", "2"]


@pytest.mark.parametrize(
    "given, names",
    [
        (["001.Laysan_Albatross", "002.Crow"], ["laysan albatross", "crow"]),
        (["007.Crow", "013.Jay"], ["crow", "jay"]),  # some classes of many
        (["0_cat", "1_dog"], ["cat", "dog"]),
        (["1. cat", "2. dog"], ["cat", "dog"]),
        ([f"{n}_x{chr(n)}" for n in range(101, 113)], [f"x{chr(n)}" for n in range(101, 113)]),
        (["20_speed", "30_speed"], ["20 speed", "30 speed"]),
        (["20_speed", "30_zone"], ["20 speed", "30 zone"]),
        (["1_euro", "2_euro"], ["1 euro", "2 euro"]),
        (["12_lawn_mower", "cat"], ["12 lawn mower", "cat"]),
        (["2_dog", "5_cat"], ["2 dog", "5 cat"]),
    ],
)
def test_a_number_goes_only_where_it_is_an_index_of_the_classes(given, names):
    assert text_class_names(given) == names


def test_wordnet_ids_are_told_by_name():
    with pytest.warns(UserWarning, match="n01440764 is 'tench'.*mapping.class_names"):
        names = text_class_names(["n01440764", "n02102040", "n99999999"], {"n02102040": "a dog"})
    assert names == ["tench", "a dog", "n99999999"]


@pytest.mark.parametrize(
    "names, override, words",
    [
        (["cat", "dog"], {"Dog": "hound"}, ["mapping.class_names", "'Dog'", "did you mean 'dog'"]),
        (["cat", "_"], None, ["class '_' has no name", "mapping.class_names"]),
        (["cat", "dog"], {"dog": " "}, ["class 'dog' has no name"]),
        (["cat", "dog"], ["one"], ["1 names for 2 classes"]),
        (["cat", "dog"], "names.txt", ["mapping.class_names: names.txt cannot be read"]),
        (["cat", "dog"], "names", ["'names' is no file of names"]),
    ],
)
def test_names_that_do_not_fit_give_an_error_of_one_line(names, override, words):
    with pytest.raises(UserError) as error:
        text_class_names(names, override)
    message = str(error.value)
    assert all(word in message for word in words) and "\n" not in message, message


@pytest.mark.parametrize(
    "names, override, texts, words",
    [
        (
            ["Sea_Lake", "SeaLake", "b"],
            None,
            ["sea lake", "sea lake", "b"],
            "'Sea_Lake' and 'SeaLake' are both 'sea lake'",
        ),
        (["a", "b"], {"b": "a"}, ["a", "a"], "'a' and 'b' are both 'a'"),
        (
            ["missile (0)", "crane", "missile (2)"],
            None,
            ["missile", "crane", "missile"],
            "'missile .0.' and 'missile .2.'",
        ),
    ],
)
def test_the_same_text_for_two_classes_is_a_warning_that_names_them(names, override, texts, words):
    with pytest.warns(UserWarning, match=f"{words}.*mapping.class_names gives others") as told:
        assert text_class_names(names, override) == texts
    assert len(told) == 1
    labels = LabelSpace.from_templates(["a {}.", "the {}."], texts)
    assert labels.class_of == (*range(len(names)),) * 2 and LabelSpace.from_dict(labels.to_dict()) == labels


@pytest.mark.parametrize("kind", ["list", "map", "txt", "json", "yaml", "yaml list", "txt in UTF-16"])
def test_names_for_texts_from_a_list_a_map_or_a_file(kind, tmp_path):
    names, texts = ["1", "no", "n 3"], ["a bee", "Norway", "0x10"]
    path = str(tmp_path / f"names.{kind.split()[0]}")
    written = {
        "json": json.dumps(dict(zip(names, texts, strict=True))),
        "yaml": "1: a bee\nno: Norway\nn 3: 0x10\n",
    }
    written |= {"txt": "a bee\nNorway\n0x10\n", "yaml list": "- a bee\n- Norway\n- 0x10\n"}
    if kind in ("list", "map"):
        given = texts if kind == "list" else dict(zip(names, texts, strict=True))
    else:
        given, utf16 = path, kind.endswith("16")
        encoding = "utf-16" if utf16 else "utf-8-sig"
        (tmp_path / Path(path).name).write_text(written["txt" if utf16 else kind], encoding=encoding)
    assert text_class_names(names, given) == texts


# The label space


words = st.text(alphabet="abcXYZ {}.", min_size=1, max_size=8).filter(lambda text: text.strip())


@given(
    st.lists(words.map(lambda text: text.replace("{}", "")), min_size=1, max_size=5, unique=True),
    st.lists(words.filter(lambda text: text.strip()), min_size=1, max_size=6, unique=True),
)
def test_label_template_times_t_plus_class_is_that_template_with_that_class(templates, class_names):
    templates = [f"{text}{{}}" for text in templates]
    if any(template.count("{}") != 1 for template in templates):
        return
    labels = LabelSpace.from_templates(templates, class_names)
    assert len(labels) == len(templates) * len(class_names) and labels.is_text
    for t, template in enumerate(templates):
        for c, name in enumerate(class_names):
            index = t * len(class_names) + c
            before, after = template.split("{}")
            assert labels.names[index] == before + name + after  # braces in a name stay as they are
            assert (labels.wording_of[index], labels.class_of[index]) == (t, c)


def test_a_configs_label_space():
    names = ["Big_Bird", "cat"]
    assert text_label_space(MappingConfig(), names).names[:2] == (
        "This is a photo of a big bird.",
        "This is a photo of a cat.",
    )
    assert len(text_label_space(MappingConfig(), names)) == 162
    assert len(text_label_space(MappingConfig(kind="identity"), names)) == 2
    own = MappingConfig(templates=["{}!", "a {}"], class_names={"cat": "Tom"})
    assert text_label_space(own, names).names == ("big bird!", "Tom!", "a big bird", "a Tom")
    assert text_label_space(own, names).class_names == ("big bird", "Tom")


# On the command line: one line, exit code 2


def run_recipe(recipe: str, arguments: list[str], monkeypatch, capsys) -> str:
    import runpy
    from pathlib import Path

    path = Path(__file__).parents[2] / "recipes" / recipe
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(path), run_name="__main__")
    assert end.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--mapping.templates", "papr"], "did you mean 'paper'"),
        (["--mapping.templates", "['a photo']"], "'a photo' needs exactly one {}"),
        (["--mapping.class_names", "{'7': 'number eight'}"], "unknown value '7'"),
        (
            ["--mapping.kind", "identity", "--mapping.templates", "simple"],
            "10 classes have 70 texts",
        ),
        (["--source.name", "offline:lite0", "--mapping.templates", "paper"], "no text tower"),
        (["--source.name", "offline:lite0", "--mapping.within", "class"], "needs a label space made of text"),
        (["--mapping.within", "template"], "mapping.within: unknown value 'template'"),
        (["--source.name", "hf:someone/nothing"], "`hf download someone/nothing`"),
    ],
)
def test_a_wrong_label_space_ends_training_with_one_line(arguments, words, tmp_path, monkeypatch, capsys):
    common = [
        "--source.name",
        "offline:lite0-minilm",
        "--source.canvas",
        "64",
        "--output",
        str(tmp_path / "run"),
    ]
    assert words in run_recipe("train.py", [*common, *arguments], monkeypatch, capsys)


def test_zero_shot_needs_a_text_tower(tmp_path, monkeypatch, capsys):
    arguments = ["--source.name", "offline:lite0", "--output", str(tmp_path / "run")]
    assert "no text tower" in run_recipe("zero_shot.py", arguments, monkeypatch, capsys)
