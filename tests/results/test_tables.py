"""Tables for people: one place of names, rows of any mapping, text that any name can be."""

import ast
import importlib
import json
from pathlib import Path

import pytest
import torch

import clipvp
from clipvp.mappings.base import Links
from clipvp.results.tables import (
    CAPTIONS,
    MAPPING_COLUMNS,
    SAVED_PROMPTS,
    SCORE_COLUMNS,
    SCORES,
    mapping_columns,
    mapping_rows,
    mapping_table,
    mapping_text,
    markdown_table,
    percent,
    scores_table,
)

PACKAGE = Path(clipvp.__file__).parent
LABELS = [f"label {index}" for index in range(6)]


# Rows of the mapping table


def test_a_class_without_a_label():
    links = Links(torch.tensor([[-1], [2]]), torch.tensor([[0.0], [1.0]]))
    rows = mapping_rows(links, LABELS, ["cat", "dog"])
    assert rows == [
        {"class": "cat", "label": None, "index": -1, "count": None, "share": None},
        {"class": "dog", "label": "label 2", "index": 2, "count": None, "share": None},
    ]
    assert mapping_columns(rows) == ["class", "label"]
    lines = mapping_table(rows).splitlines()
    assert lines[2].split() == ["cat", "-"] and lines[3].split() == ["dog", "label", "2"]
    assert mapping_columns(mapping_rows(Links(*(part[:1] for part in links[:2])), LABELS, ["cat"])) == [
        "class"
    ]


def test_three_weighted_links_a_class():
    index = torch.tensor([[4, 0, 5], [1, -1, -1], [-1, -1, -1]])
    weight = torch.tensor([[0.6, 0.3, 0.1], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    count = torch.tensor([[6, 3, 1], [8, 0, 0], [0, 0, 0]])
    rows = mapping_rows(Links(index, weight, count, torch.tensor([12, 8, 0])), LABELS, ["cat", "dog", "elk"])
    assert json.loads(json.dumps(rows)) == rows
    cat, dog, elk = rows
    assert [link["label"] for link in cat["links"]] == ["label 4", "label 0", "label 5"]
    assert [link["weight"] for link in cat["links"]] == pytest.approx([0.6, 0.3, 0.1], abs=1e-6)
    assert (cat["label"], cat["index"], cat["count"], cat["share"]) == ("label 4", 4, 6, 0.5)
    assert [link["label"] for link in dog["links"]] == ["label 1"] and dog["share"] == 1
    assert elk["links"] == [] and elk["label"] is None and elk["share"] is None
    assert mapping_text(cat, "label") == "label 4 (0.6), label 0 (0.3), label 5 (0.1)"
    assert mapping_text(dog, "label") == "label 1 (1)" and mapping_text(elk, "label") == "-"
    assert mapping_text(cat, "share") == "50.0 %" and mapping_text(cat, "acc1") == "-"


def test_a_table_has_the_columns_that_are_asked_for():
    rows = [{"class": "007", "label": "1e3", "count": 3, "share": 0.5, "acc1": 1.0}]
    head, _, line = mapping_table(rows).splitlines()
    assert all(name in head for name in MAPPING_COLUMNS.values()) and line.split()[:2] == ["007", "1e3"]
    head, _, line = mapping_table(rows, ("class", "acc1")).splitlines()
    assert MAPPING_COLUMNS["label"] not in head and line.split() == ["007", "100.0", "%"]


def test_scores_are_in_the_order_of_their_names_and_have_images():
    score = {"acc1": 0.5, "acc5": None, "mean_per_class_recall": 0.25, "n": 8}
    metrics = {"test.last": score, "val.best": {**score, "n": 0}, "test.best_val": {**score, "acc1": 0.75}}
    assert scores_table(metrics) == [
        [SCORES["test.best_val"], "75.0 %", "-", "25.0 %", 8],
        [SCORES["test.last"], "50.0 %", "-", "25.0 %", 8],
    ]
    assert len(SCORE_COLUMNS) == 4


@pytest.mark.parametrize("share, text", [(None, "-"), (0.0, "0.0 %"), (1.0, "100.0 %"), (0.12345, "12.3 %")])
def test_percent(share, text):
    assert percent(share) == text


def test_markdown_shows_any_text_as_it_is():
    table = markdown_table(["a", "b"], [["<b>|x|\n`y`", None]])
    assert table.splitlines()[2] == r"| \<b\>\|x\| \`y\` | - |"


# One place of names


def constants(path: Path) -> list[str]:
    """Return the texts in a file without its docstrings; the whole text of a file that is not Python."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return [text]
    tree = ast.parse(text)
    scopes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, scopes) and ast.get_docstring(node)
    }
    nodes = (
        node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    return [node.value for node in nodes if id(node) not in docs]


FILES = [
    path for path in PACKAGE.rglob("*") if path.suffix in (".py", ".j2", ".js") and path.name != "tables.py"
]


def test_names_of_scores_columns_and_pictures_are_in_one_file_only():
    anywhere = [*SCORES.values(), *CAPTIONS.values(), *SAVED_PROMPTS.values()]
    anywhere += [MAPPING_COLUMNS["count"], MAPPING_COLUMNS["share"]]
    exact = {*MAPPING_COLUMNS.values()}
    assert {path.suffix for path in FILES} == {".py", ".j2", ".js"}
    copies = [
        f"{path.relative_to(PACKAGE)}: {text[:80]!r}"
        for path in FILES
        for text in constants(path)
        if text.strip() in exact or any(label in text for label in anywhere)
    ]
    assert not copies, "\n".join(copies)


def test_the_places_that_show_tables_have_no_names_of_columns():
    shown = [path for path in FILES if path.relative_to(PACKAGE).parts[0] in ("results", "artifact")]
    names = {SCORE_COLUMNS[key] for key in ("acc1", "acc5", "mean_per_class_recall")}
    assert not [path for path in shown for text in constants(path) if text.strip() in names]
    for module in ("results.record", "results.compare", "results.page.write", "artifact.card", "cli.verbs"):
        found = importlib.import_module(f"clipvp.{module}")
        assert any(getattr(found, name, None) is table for name, table in TABLES.items()), module


TABLES = {"SCORES": SCORES, "SCORE_COLUMNS": SCORE_COLUMNS, "MAPPING_COLUMNS": MAPPING_COLUMNS}
