"""Texts that do not fit a run are one line each, before anything is written."""

import json
from pathlib import Path

import pytest

from clipvp import UserError, build_classifier

NAMES = ["red thing", "green thing", "blue thing"]


def bank(**own):
    return {name: [f"{name} is {word}." for word in ("small", "large")] for name in NAMES} | own


@pytest.mark.parametrize(
    "files, prompt, mapping, words",
    [
        (
            {"a": {"cat": ["A pet."]}},
            {},
            {},
            "has no texts of 'red thing', 'green thing', 'blue thing'; .*cat",
        ),
        (
            {"a": bank(), "b": {**bank(), "blue thing": []}},
            {},
            {},
            "b.json' has no text that can be used for 'blue",
        ),
        ({"a": bank(), "b": {"red thing": ["It is."]}}, {}, {}, "b.json' has no texts of 'green thing'"),
        ({"a": bank(), "b": None}, {}, {}, "b.json' cannot be read: No such file"),
        (
            {"a": bank(), "b": bank()},
            {},
            {"group_weights": {"a": 0.5, "c": 0.5}},
            "there is no group 'c'; .*a, b",
        ),
        ({"a": bank(), "b": bank()}, {}, {"group_weights": {"a": 1.0}}, "the group 'b' has no share"),
        (
            {"a": bank(), "b": bank()},
            {"views": 3, "view_by": "groups"},
            {},
            "3 prompts by groups .* there are 2: a, b",
        ),
        ({"a": bank()}, {"views": 7}, {}, "7 prompts are more than the 6 texts"),
    ],
)
def test_texts_that_do_not_fit_are_one_line(
    files, prompt, mapping, words, config, tiny_task, tiny_model, tmp_path
):
    for name, texts in files.items():
        if texts is not None:
            (tmp_path / f"{name}.json").write_text(json.dumps(texts))
    texts = {name: str(tmp_path / f"{name}.json") for name in files}
    run = config(prompt=prompt, mapping={"kind": "text_pool", "texts": texts, **mapping})
    run.source.name, run.source.canvas = tiny_model("open_clip_vit"), None
    with pytest.raises(UserError, match=words) as error:
        build_classifier(run, tiny_task)
    assert "\n" not in str(error.value) and not Path(run.output).exists()


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_lambda_outside_0_to_1_is_one_line(share, config):
    with pytest.raises(UserError, match=r"mapping.group_weights.a: .* is not a share; give 0 to 1"):
        config(mapping={"kind": "text_pool", "group_weights": {"a": share, "b": 0.5}})
