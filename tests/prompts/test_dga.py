"""DGA is its formula, written out in loops; its views are single prompts, and a run of it is whole."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import left_by, trained
from torch.nn import functional as F

from clipvp import PromptedClassifier, UserError, build_classifier, fit
from clipvp.config.schema import MappingConfig, PromptConfig
from clipvp.data.batches import Batches
from clipvp.mappings.dga import DgaMapping, class_tree
from clipvp.prompts.dga import DgaPrompt
from clipvp.prompts.padding import PaddingPrompt
from clipvp.training import step
from clipvp.training.statistics import count_pass

TEXTS = {"templates": ["a {}.", "the {}."]}


def spread(prompt, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in prompt.parameters():
            parameter.normal_(generator=generator)
    return prompt


def run_of(config, source, prompt=None, mapping=None, **sections):
    counts = {"kind": "dga", "levels": 1, "crops": 2}
    run = config(
        prompt={**counts, "image_size": 16, "crop_step": 4, **(prompt or {})},
        mapping={**counts, **TEXTS, **(mapping or {})},
        **sections,
    )
    run.source.name, run.source.canvas = source, None
    return run


# The formula


def in_loops(outputs, class_of, parents, crops, tree_share):
    """Return target logits and extra loss terms of one image's text logits (V, S), number by number."""
    levels, num_target = len(parents), len(parents[0])

    def classes(view):
        own = [
            [float(value) for value, c in zip(view, class_of, strict=True) if c == t]
            for t in range(num_target)
        ]
        return [sum(values) / len(values) for values in own]

    def super_logits(logits, owner):
        return {
            k: math.log(sum(math.exp(logits[t]) for t in range(num_target) if owner[t] == k))
            for k in set(owner)
        }

    def entropy(logits):
        total = sum(math.exp(value) for value in logits)
        return -sum(math.exp(v) / total * math.log(math.exp(v) / total) for v in logits)

    views = [classes(view) for view in outputs]
    shared, tree, terms = views[levels], [0.0] * num_target, []
    for level, owner in enumerate(parents):
        over = super_logits(views[level], owner)
        terms.append([math.log(math.exp(over[k]) / sum(map(math.exp, over.values()))) for k in sorted(over)])
        for t in range(num_target):
            siblings = sum(math.exp(shared[s]) for s in range(num_target) if owner[s] == owner[t])
            tree[t] += (over[owner[t]] + math.log(math.exp(shared[t]) / siblings)) / levels
    weights = [max(0.0, entropy(views[0]) - entropy(views[levels + 1 + e])) for e in range(crops)]
    certain = views[0]
    if sum(weights) > 0:
        certain = [
            sum(w * views[levels + 1 + e][t] for e, w in enumerate(weights)) / sum(weights)
            for t in range(num_target)
        ]
    both = [tree_share * a + (1 - tree_share) * b for a, b in zip(tree, certain, strict=True)]
    return both, terms


@pytest.mark.parametrize("crops", [0, 1, 3])
def test_it_is_the_formula_in_loops(crops):
    class_of, parents = [0, 1, 2, 3, 4, 0, 2, 2], [[0, 1, 2, 3, 4], [0, 1, 1, 0, 2], [0, 0, 0, 0, 1]]
    mapping = DgaMapping(8, 5, class_of, levels=2, crops=crops, tree_share=0.6)
    mapping.parents.copy_(torch.tensor(parents))
    outputs = 3 * torch.randn(6, mapping.views, 8, generator=torch.Generator().manual_seed(crops))
    outputs[0, 3:] = outputs[0, :1]  # no crop is more certain than the whole image
    targets = torch.tensor([0, 1, 2, 3, 4, 2])
    found, loss = mapping(outputs), torch.zeros(())
    for image, target, row in zip(outputs, targets.tolist(), found, strict=True):
        expected, terms = in_loops(image, class_of, parents, crops, 0.6)
        torch.testing.assert_close(row, torch.tensor(expected), rtol=1e-4, atol=1e-4)
        loss = loss - sum(logs[owner[target]] for logs, owner in zip(terms, parents, strict=True)) / 3
    torch.testing.assert_close(mapping.extra_loss(outputs, targets), loss, rtol=1e-4, atol=1e-4)
    assert (
        mapping.matrix() is None and (mapping.links(2).index == -1).all()
    )  # each image weighs its own texts


def test_gradients_are_finite_where_classes_are_far_apart():
    mapping = DgaMapping(4, 4, levels=1, crops=1)
    mapping.parents[1] = torch.tensor([0, 0, 1, 1])
    outputs = torch.tensor([[[90.0, -90.0, 0.0, 40.0]]]).repeat(2, mapping.views, 1).requires_grad_()
    total = F.cross_entropy(mapping(outputs), torch.tensor([1, 2])) + mapping.extra_loss(
        outputs, torch.tensor([1, 2])
    )
    assert torch.isfinite(total) and torch.isfinite(torch.autograd.grad(total, outputs)[0]).all()


def test_the_tree_joins_what_is_near():
    numbers = np.random.default_rng(0)
    centres = np.array([[0, 0], [10, 0], [0, 60], [10, 60]], float)
    owner = [2, 0, 3, 1, 0, 2, 1, 3]
    points = centres[owner] + 0.1 * numbers.normal(size=(8, 2))
    levels = class_tree(points, 2)
    assert levels[0] == list(range(8)) and levels[1] == [0, 1, 2, 3, 1, 0, 3, 2]
    assert levels[2] == [0, 1, 0, 1, 1, 0, 1, 0]
    assert [max(level) + 1 for level in class_tree(points[:5], 2)] == [5, 3, 2]


# The views


def test_views_are_single_prompts_and_their_mean():
    prompt = spread(DgaPrompt((24, 24), (16, 16), levels=1, crops=2, crop_step=4))
    images = torch.rand(3, 3, 16, 16)
    expected = [level(images) for level in prompt.levels]
    mean = PaddingPrompt((24, 24), (16, 16))
    with torch.no_grad():
        mean.delta.copy_((prompt.levels[0].delta + prompt.levels[1].delta) / 2)
    expected.append(mean(images))
    for crop, less in zip(prompt.crops, (4, 8), strict=True):
        single = PaddingPrompt((24, 24), (16 - less, 16 - less))
        single.load_state_dict(crop.prompt.state_dict())
        edge = less // 2
        expected.append(single(images[:, :, edge : 16 - edge, edge : 16 - edge]))
    torch.testing.assert_close(prompt(images), torch.cat(expected), rtol=0, atol=1e-6)
    assert prompt.views == len(prompt.parts()) == 5
    outputs = torch.arange(5 * 3 * 2).view(15, 2)
    assert torch.equal(prompt.merge(outputs)[1, 2], outputs[2 * 3 + 1])
    frames = [24**2 - side**2 for side in (16, 16, 12, 8)]
    assert prompt.num_trainable() == 3 * sum(frames)


def test_a_shared_border_is_the_plain_way(config, tiny_task, tmp_path):
    import tiny_models

    tiny_models.open_clip_resnet(tmp_path / "resnet")
    run = run_of(config, f"open_clip:local-dir:{tmp_path / 'resnet'}")
    classifier = build_classifier(run, tiny_task)
    spread(classifier.prompt)
    images, results = torch.rand(4, 3, 16, 16), []
    for share in (True, False):
        classifier.share_border = share
        with torch.no_grad():
            logits = [
                classifier.source_outputs(images) for _ in range(2)
            ]  # the second on borders that are held
        assert torch.equal(*logits) and logits[0].shape == (4, 5, 6)
        loss = F.cross_entropy(classifier(images), torch.tensor([0, 1, 2, 0]))
        results.append((logits[0], *torch.autograd.grad(loss, list(classifier.prompt.parameters()))))
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


# A run


def test_a_run_is_saved_loaded_and_goes_on_after_a_kill(config, tiny_task, tiny_model, tmp_path, monkeypatch):
    run = run_of(config, tiny_model("open_clip_vit"), train={"epochs": 2})
    classifier, result = trained(run, tiny_task)
    parents = classifier.mapping.parents.tolist()
    plain = batches_of(classifier, tiny_task)
    assert result.results["queries"]["counting"] == len(plain)  # without a prompt there is one view
    statistic = count_pass(classifier, plain, 7)
    assert parents == class_tree(statistic.class_means().numpy(), 1) and max(parents[1]) == 1
    assert all(parameter.abs().sum() > 0 for parameter in classifier.prompt.parameters())
    assert result.results["encodes_per_image"] == 5
    card = (tmp_path / "run" / "prompt" / "README.md").read_text()
    assert "Each image is encoded 5 times, once for each of its prompted views." in card
    loaded = PromptedClassifier.from_pretrained(tmp_path / "run" / "prompt")
    images = torch.rand(3, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(loaded(images), classifier.eval()(images))
    assert loaded.fold() is loaded and len(loaded.predict([np.zeros((9, 9, 3), np.uint8)], top_k=2)[0]) == 2

    class Killed(BaseException):
        pass

    update, steps = step.Trainer._update, []

    def until(self, parts):
        if len(steps) == 6:
            raise Killed
        steps.append(1)
        update(self, parts)

    again = replace(run, output=str(tmp_path / "again"), train=replace(run.train, save_minutes=1e-9))
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(step.Trainer, "_update", until)
        trained(again, tiny_task)
    again = replace(again, resume="auto")
    fit(build_classifier(again, tiny_task), tiny_task, again)
    for mine, theirs in zip(left_by(tmp_path / "again")[:2], left_by(tmp_path / "run")[:2], strict=True):
        assert mine == theirs


def test_a_normalised_step_is_that_of_the_whole_canvas_for_crops_too(config, tiny_task, tiny_model):
    run = run_of(config, tiny_model("open_clip_vit"), optim={"name": "normalized_sgd"}, train={"epochs": 1})
    for crop in trained(run, tiny_task)[0].prompt.crops:
        top, left, bottom, right = crop.prompt.box
        assert (crop.prompt.delta[:, top:bottom, left:right] != 0).any()


def batches_of(classifier, task):
    from accelerate import Accelerator

    return Batches(task.tensors("train", classifier.resize, progress=False), Accelerator())


def test_what_does_not_go_is_one_line(config, tiny_task, tiny_model, tiny_timm):
    clip = tiny_model("open_clip_vit")
    cases = [
        (dict(prompt={"crops": 1}), "takes the logits of 5 views of an image, and the dga prompt gives 4"),
        (dict(prompt={"crop_step": 8}), "2 crops, each 8 pixels smaller, leave 0 of 16 pixels"),
        (
            dict(prompt={"levels": 3}, mapping={"levels": 3}),
            "3 levels above the classes need 5 classes or more; there are 3",
        ),
    ]
    for given, words in cases:
        with pytest.raises(UserError, match=words) as error:
            build_classifier(run_of(config, clip, **given), tiny_task)
        assert "\n" not in str(error.value)
    plain = config(mapping={"kind": "dga", "levels": 1})
    with pytest.raises(UserError, match="mapping.kind: dga needs a CLIP"):
        build_classifier(plain, tiny_task)
    for share in (-0.1, 1.5, math.nan):
        with pytest.raises(
            UserError, match="mapping.tree_share: .* is not a share; give a number from 0 to 1"
        ):
            MappingConfig(kind="dga", tree_share=share)
    with pytest.raises(UserError, match="prompt.views: 2 does not go with kind dga"):
        PromptConfig(kind="dga", views=2)
    with pytest.raises(UserError, match="mapping.levels: 0"):
        MappingConfig(kind="dga", levels=0)
