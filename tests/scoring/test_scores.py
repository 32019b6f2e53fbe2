"""Scores equal their definitions, whatever the batches; an accuracy that is not defined is None."""

import json
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from conftest import coloured_images
from hypothesis import given, settings
from hypothesis import strategies as st

from clipvp import Task, UserError, build_classifier, evaluate
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
