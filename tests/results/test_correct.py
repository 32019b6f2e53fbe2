"""Which images a run had right: what is read is what was scored, by any number of processes."""

import json

import numpy as np
import pytest
import torch
from conftest import trained
from hypothesis import given, settings
from hypothesis import strategies as st

from clipvp.registry import UserError
from clipvp.results.correct import pack, read_correct, unpack
from clipvp.results.folder import read_results


@settings(max_examples=100, deadline=None)
@given(st.lists(st.booleans(), max_size=70))
def test_bits_come_back(values):
    packed = json.loads(json.dumps(pack(values)))
    assert unpack(packed).tolist() == values and len(packed["bits"]) <= 4 * (len(values) // 24 + 1)


def test_a_run_keeps_which_images_it_had_right(config, tiny_task):
    run = config(train={"batch_size": 7})
    classifier, result = trained(run, tiny_task)
    found, results = read_correct(run.output), read_results(run.output)
    assert found.split_hash == tiny_task.split_hash == results["split_hash"]
    assert found.test_hash == tiny_task.test_hash
    assert set(found.scores) == {"test.last", "test.best_val", "val.best"}
    for key, right in found.scores.items():
        score = results["metrics"][key]
        assert len(right) == score["n"] and right.mean() == pytest.approx(score["acc1"])
    with torch.no_grad():  # ``fit`` ends with the prompt that validates best
        images = tiny_task.tensors("test", classifier.resize).images.float() / 255
        predicted = classifier.eval()(images).argmax(1)
    assert (
        found.scores["test.best_val"].tolist()
        == (predicted == torch.from_numpy(tiny_task.test.labels)).tolist()
    )
    assert result.test["last"].correct.tolist() == found.scores["test.last"].tolist()


def test_the_test_hash_is_of_the_test_images_alone():
    from conftest import coloured_images

    from clipvp import Task

    tasks = [
        Task.from_dataset(
            coloured_images(30, 3), coloured_images(count, 3, seed=1), class_names=list("abc"), seed=seed
        )
        for count, seed in ((12, 0), (12, 1), (13, 0))
    ]
    assert tasks[0].split_hash != tasks[1].split_hash and tasks[0].test_hash == tasks[1].test_hash
    assert tasks[2].test_hash != tasks[0].test_hash


def test_a_missing_file_is_an_older_run_and_a_damaged_one_is_an_error(tmp_path):
    assert read_correct(tmp_path) is None
    for content in (
        "{",
        "[]",
        '{"split_hash": "a", "test_hash": "b", "scores": {"x": {"n": 9, "bits": "oA=="}}}',
    ):
        (tmp_path / "correct.json").write_text(content)
        with pytest.raises(UserError, match="damaged"):
            read_correct(tmp_path)
    assert np.array_equal(unpack({"n": 0, "bits": ""}), [])


@pytest.mark.parametrize(
    "mapping", [{"kind": "logistic"}, {"kind": "linear", "start": "means", "train": False}]
)
def test_a_solved_head_says_how_many_numbers_it_holds(mapping, config, tiny_task):
    run = config(prompt={"kind": "none"}, mapping=mapping, train={"epochs": 1})
    classifier, result = trained(run, tiny_task)
    info, inputs = result.results["run_info"], classifier.source.num_features
    assert info["trainable_parameters"] == 0 and 0 <= info["fitted_numbers"] - (inputs + 1) * 3 <= 1
