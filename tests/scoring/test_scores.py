"""Scores equal their definitions, whatever the batches; an accuracy that is not defined is None."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from conftest import coloured_images, small_config, trained
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clipvp import PromptedClassifier, Task, UserError, build_classifier, evaluate, load_task
from clipvp.config.values import from_dict
from clipvp.scoring.scores import Scores


def random_batch(count, num_source, num_target, seed):
    generator = torch.Generator().manual_seed(seed)
    source_logits = torch.randn(count, num_source, generator=generator)
    logits = torch.randn(count, num_target, generator=generator)
    return source_logits, logits, torch.randint(num_target, (count,), generator=generator)


def scored(source_logits, logits, labels, size=1000):
    scores = Scores(source_logits.shape[1], logits.shape[1], torch.device("cpu"))
    parts = zip(source_logits.split(size), logits.split(size), labels.split(size), strict=True)
    for part in parts:
        scores.add(*part)
    return scores.result(Accelerator())


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 9), st.integers(1, 70), st.integers(0, 10**6))
def test_scores_are_their_definitions_whatever_the_batches(count, num_source, num_target, size, seed):
    source_logits, logits, labels = random_batch(count, num_source, num_target, seed)
    labels = labels.clamp(max=max(0, num_target - 2))  # often a class is absent
    result = scored(source_logits, logits, labels, size)
    hits, in_five, by_class = 0, 0, {}
    confusion = torch.zeros(num_target, num_target, dtype=torch.int64)
    counts = torch.zeros(num_source, num_target, dtype=torch.int64)
    for source, row, label in zip(source_logits, logits, labels.tolist(), strict=True):
        order = sorted(range(num_target), key=lambda t: -row[t])
        hits += order[0] == label
        in_five += label in order[:5]
        by_class.setdefault(label, []).append(order[0] == label)
        confusion[label, order[0]] += 1
        counts[int(source.argmax()), label] += 1
    assert result.n == count and result.acc1 == hits / count
    assert result.acc5 == (in_five / count if num_target > 5 else None)
    recalls = {label: sum(right) / len(right) for label, right in by_class.items()}
    assert result.mean_per_class_recall == pytest.approx(sum(recalls.values()) / len(recalls))
    assert result.per_class() == [recalls.get(label) for label in range(num_target)]
    assert torch.equal(result.confusion, confusion)
    assert torch.equal(result.counts.rows(torch.arange(num_source)), counts)
    json.dumps(result.to_dict(), allow_nan=False)


def test_scores_are_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    source_logits, logits, labels = random_batch(300, 30, 8, 0)
    result, predicted = scored(source_logits, logits, labels), logits.argmax(1)
    assert result.acc1 == pytest.approx(metrics.accuracy_score(labels, predicted))
    assert result.acc5 == pytest.approx(metrics.top_k_accuracy_score(labels, logits, k=5))
    assert result.mean_per_class_recall == pytest.approx(metrics.balanced_accuracy_score(labels, predicted))
    assert (result.confusion.numpy() == metrics.confusion_matrix(labels, predicted)).all()


def test_sums_of_processes_are_the_scores_of_all(monkeypatch):
    """Each process adds its images; what is reduced is a sum, so no image counts twice."""
    batch = random_batch(50, 9, 7, 1)
    parts = [Scores(9, 7, torch.device("cpu")) for _ in range(3)]
    for scores, *part in zip(parts, *(values.tensor_split(3) for values in batch), strict=True):
        scores.add(*part)
    counts = [scores.counts.tensors() for scores in parts]
    monkeypatch.setattr("accelerate.utils.gather_object", lambda own: counts)
    sums = iter([sum(getattr(scores, name) for scores in parts) for name in ("confusion", "in_five")])
    together = parts[0].result(SimpleNamespace(reduce=lambda value, how: next(sums)))
    alone = scored(*batch)
    assert together.to_dict() == alone.to_dict() and torch.equal(together.confusion, alone.confusion)
    labels = torch.arange(9)
    assert torch.equal(together.counts.rows(labels), alone.counts.rows(labels))


# evaluate


@pytest.fixture
def classifier(tiny_timm, tiny_task):
    values = {"source": {"name": tiny_timm, "canvas": 32}, "prompt": {"image_size": 16}}
    return build_classifier(from_dict({**values, "mapping": {"kind": "random"}}), tiny_task)


@pytest.mark.parametrize("split, n", [("train", 60), ("val", 18), ("test", 25)])
def test_evaluate_scores_every_image_of_a_split_once(split, n, classifier, tiny_task):
    results = [evaluate(classifier, tiny_task, split, batch_size=size, progress=False) for size in (7, 128)]
    assert [result.n for result in results] == [n, n]
    assert results[0].to_dict() == results[1].to_dict()
    tensors = tiny_task.tensors(split, classifier.resize, progress=False)
    with torch.no_grad():
        outputs = classifier.source_outputs(tensors.images.float() / 255)
        predicted = classifier.mapping(outputs).argmax(1)
    labels, classes = outputs.argmax(1).tolist(), tensors.labels.tolist()
    expected = torch.zeros(20, 3, dtype=torch.int64)
    for label, target in zip(labels, classes, strict=True):
        expected[label, target] += 1
    assert all(torch.equal(result.counts.rows(torch.arange(20)), expected) for result in results)
    assert results[0].acc1 == float((predicted == tensors.labels).double().mean())


def test_evaluate_needs_the_classifiers_own_classes_and_a_split_that_is_there(classifier, tiny_task):
    other = Task.from_dataset(coloured_images(9, 3), coloured_images(6, 3), class_names=["a", "b", "c"])
    with pytest.raises(UserError, match="other classes"):
        evaluate(classifier, other, progress=False)
    with pytest.raises(UserError, match="did you mean 'test'"):
        evaluate(classifier, tiny_task, "tets", progress=False)
    without = Task(**{**vars(tiny_task), "val": None})
    with pytest.raises(UserError, match="no val split"):
        evaluate(classifier, without, "val", progress=False)


def test_evaluate_changes_nothing(classifier, tiny_task):
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    state = torch.get_rng_state()
    evaluate(classifier, tiny_task, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in classifier.state_dict().items())


def held_out(folder, names, count):
    for index, name in enumerate(names):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (8, 8), (80 * index, number, 0)).save(folder / name / f"{number}.png")
    return str(folder)


def test_scoring_takes_every_image_and_chooses_among_all_classes(tiny_timm, tmp_path):
    names = ["ant", "bee", "cat"]
    data = held_out(tmp_path / "data", names, 10)
    config = small_config(tiny_timm, tmp_path / "run", train={"epochs": 1})
    config.data.name = data
    trained(config, load_task(config.data))
    classifier = PromptedClassifier.from_pretrained(tmp_path / "run" / "prompt")
    # Other images: all of them. Those that trained it: the ones held out in training, also from a copy elsewhere.
    other = held_out(tmp_path / "other", names, 12)
    assert evaluate(classifier, other, progress=False).n == 36
    found = evaluate(classifier, load_task(other), progress=False)
    assert found.n == 36 and found.scored == "all 36 images of other"
    copy = shutil.copytree(data, tmp_path / "copy", copy_function=shutil.copyfile)
    for same in (data, load_task(data), str(copy)):
        found = evaluate(classifier, same, progress=False)
        assert found.n == 6 and "20 % carved from train" in found.scored
    assert evaluate(classifier, data, "all", progress=False).n == 30
    only_test = held_out(tmp_path / "tested" / "test", names, 2)
    assert evaluate(classifier, str(tmp_path / "tested"), progress=False).n == 6 and only_test
    with pytest.raises(UserError, match="has splits of its own; score one of them: test"):
        evaluate(classifier, str(tmp_path / "tested"), "all", progress=False)

    # Images of one class: the accuracy is what predict gives, unless only the given classes are chosen from.
    one = held_out(tmp_path / "one", ["bee"], 5)
    paths = sorted((tmp_path / "one" / "bee").iterdir())
    right = [rows[0]["label"] == "bee" for rows in classifier.predict(paths)]
    found = evaluate(classifier, one, progress=False)
    assert found.acc1 == sum(right) / 5 and found.class_names == names and found.confusion.shape == (3, 3)
    assert found.scored == "all 5 images of one; among the 3 classes of the prompt"
    alone = evaluate(classifier, one, among="task", progress=False)
    assert alone.acc1 == 1 and alone.scored.endswith("among the 1 classes of these images alone")
