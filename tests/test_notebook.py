"""Results show themselves in a notebook, with everything escaped, and errors there are one line."""

from html.parser import HTMLParser

import pytest
from test_model import made

from clipvp import evaluate
from clipvp.labels.space import LabelSpace
from clipvp.notebook import html_table
from clipvp.registry import UserError
from clipvp.training.interrupt import Interrupted

BAD = "<img src=x onerror=alert(1)> & co"


class Cells(HTMLParser):
    """The texts of a page, and its tags."""

    def __init__(self, page: str):
        super().__init__()
        self.texts, self.tags = [], set()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)

    def handle_data(self, data):
        self.texts.append(data)


def shown(thing) -> Cells:
    found = Cells(thing._repr_html_())
    assert found.tags <= {"p", "b", "table", "thead", "tbody", "tr", "th", "td"}
    return found


def test_a_long_table_says_how_much_it_leaves_out():
    page = html_table(BAD, [[n, BAD] for n in range(30)], ["n", BAD], most=5)
    assert "<img" not in page and page.count("<tr>") == 6 and "and 25 more" in page


def test_label_spaces(tiny_timm):
    texts = shown(LabelSpace.from_texts({BAD: ["a {}.", "It purrs."], "dog": ["a {}."]})).texts
    assert "3 texts of 2 classes, 2 wordings" in texts and BAD in texts and "It purrs." in texts
    closed = shown(LabelSpace(tuple(f"label {n}" for n in range(1000)))).texts
    assert "1000 source labels" in closed and "... and 980 more" in closed


def test_classifiers_and_results(config, tiny_task):
    from conftest import trained

    tiny_task.class_names[0] = BAD
    classifier, result = trained(config(), tiny_task)
    assert BAD in shown(classifier).texts and BAD in shown(evaluate(classifier, tiny_task)).texts
    texts = shown(classifier).texts
    assert "padding" in texts and any("timm:local-dir" in text for text in texts)
    run = shown(result).texts
    assert str(result.output) in " ".join(run) and len([text for text in run if text.endswith(" %")]) >= 6
    accuracy = result.test["last"].acc1
    assert f"{100 * accuracy:.1f} %" in shown(result.test["last"]).texts


@pytest.mark.parametrize("error", [UserError("data.name: wrong"), Interrupted("stopped and saved")])
def test_an_error_that_says_what_to_do_is_shown_without_our_code(error):
    [line] = error._render_traceback_()
    assert str(error) in line


def test_a_classifier_that_is_not_trained_shows_itself(tiny_timm):
    assert "trained numbers" in shown(made(tiny_timm)).texts
