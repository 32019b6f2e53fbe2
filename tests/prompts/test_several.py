"""Several prompts are a loop of single ones; each text has the logit of its own prompt."""

import json

import numpy as np
import pytest
import tiny_models
import torch
from conftest import trained

from clipvp import PromptedClassifier, Source, UserError, build_classifier
from clipvp.config.schema import PromptConfig
from clipvp.prompts.several import clusters
from clipvp.results.record import summary


@pytest.fixture(scope="module")
def resnet(tmp_path_factory) -> str:
    """A CLIP of convolutions, on which the border is shared."""
    folder = tmp_path_factory.mktemp("resnet")
    tiny_models.open_clip_resnet(folder)
    return f"open_clip:local-dir:{folder}"


def classifier_of(config, task, source, mapping=None, canvas=None, **prompt):
    texts = {"templates": ["a {}.", "the {}.", "{}", "one {}."]}
    run = config(prompt={"views": 2, **prompt}, mapping={"kind": "text_counts", **texts, **(mapping or {})})
    run.source.name, run.source.canvas = source, canvas
    classifier = build_classifier(run, task)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in classifier.prompt.parts():
            part.delta.normal_(generator=generator)
    return classifier, run


@pytest.mark.parametrize(
    "prompt", [{"kind": "padding", "image_size": 16}, {"kind": "border", "width": 3}, {"kind": "full"}]
)
@pytest.mark.parametrize("model", ["open_clip_vit", "resnet"])
def test_views_are_a_loop_of_single_prompts(
    prompt, model, config, tiny_task, tiny_model, resnet, monkeypatch
):
    name = resnet if model == "resnet" else tiny_model(model)
    classifier, _ = classifier_of(config, tiny_task, name, **prompt)
    images = torch.rand(5, 3, *classifier.prompt.image_size, generator=torch.Generator().manual_seed(1))
    source, prompts = classifier.source, classifier.prompt.parts()
    assert len(prompts) == 2 and not torch.equal(prompts[0].delta, prompts[1].delta)
    seen, encode = [], type(source).encode

    def counted(self, pixels):
        seen.append(1)
        return encode(self, pixels)

    with torch.no_grad():
        singles = [source(prompt(images)) for prompt in prompts]
        monkeypatch.setattr(type(source), "encode", counted)
        found = classifier.source_outputs(images)
    assert len(seen) == 2  # an encoding for each view and no more
    view_of = classifier.prompt.view_of.tolist()
    assert set(view_of) == {0, 1} and found.shape == (5, len(source.labels))
    for text, view in enumerate(view_of):
        torch.testing.assert_close(found[:, text], singles[view][:, text], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        classifier.prompt(images), torch.cat([prompt(images) for prompt in prompts]), rtol=0, atol=0
    )


def test_a_shared_border_is_the_plain_way_with_and_without_gradient(config, tiny_task, resnet):
    classifier, _ = classifier_of(config, tiny_task, resnet, kind="padding", image_size=16)
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    targets, results = torch.tensor([0, 1, 2, 0]), []
    for share in (True, False):
        classifier.share_border = share
        parameters = [part.delta for part in classifier.prompt.parts()]
        loss = torch.nn.functional.cross_entropy(classifier(images), targets)
        with torch.no_grad():
            logits = [classifier(images) for _ in range(2)]  # the second on borders that are held
        assert torch.equal(*logits)
        results.append((logits[0], *torch.autograd.grad(loss, parameters)))
    assert all(gradient.abs().sum() > 0 for gradient in results[0][1:])
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


def test_a_border_is_held_for_each_prompt(config, tiny_task, resnet):
    classifier, _ = classifier_of(config, tiny_task, resnet, kind="padding", image_size=16)
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        for _ in range(3):
            classifier(images)
        held = list(classifier.source._held)
        classifier(images)
        assert len(held) == 2 and [id(h) for h in held] == [id(h) for h in classifier.source._held]
        classifier.prompt.parts()[0].delta.add_(1)
        changed = classifier(images)
        classifier.share_border = False
        torch.testing.assert_close(changed, classifier(images), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("view_by", ["clusters", "groups"])
def test_a_run_with_several_prompts_is_saved_and_loaded(view_by, config, tiny_task, tiny_model, tmp_path):
    names = tiny_task.class_names
    for group in ("shape", "colour"):
        texts = {name: [f"its {group} is {word} {name}." for word in ("this", "that")] for name in names}
        (tmp_path / f"{group}.json").write_text(json.dumps(texts))
    bank = {group: str(tmp_path / f"{group}.json") for group in ("shape", "colour")}
    run = config(
        prompt={"views": 2, "view_by": view_by, "image_size": 16},
        mapping={"kind": "text_counts", "texts": bank, "statistics": "running"},
        train={"epochs": 2},
    )
    run.source.name, run.source.canvas = tiny_model("open_clip_vit"), None
    classifier, result = trained(run, tiny_task)
    prompts = classifier.prompt.parts()
    assert all(part.delta.abs().sum() > 0 for part in prompts)
    assert not torch.equal(prompts[0].delta, prompts[1].delta)
    trainable = result.results["run_info"]["trainable_parameters"]
    assert trainable == 2 * prompts[0].num_trainable() and result.results["prompt"]["kind"] == "several"
    if view_by == "groups":
        groups = classifier.source.labels.groups
        assert classifier.prompt.view_of.tolist() == [("shape", "colour").index(group) for group in groups]
    assert result.results["encodes_per_image"] == 2
    assert "each image is encoded 2 times" in summary(result.results, tmp_path)
    card = (tmp_path / "run" / "prompt" / "README.md").read_text()
    assert (
        "Each image is encoded 2 times" in card
        and "view of" not in card
        and "kind" not in card.split("##")[0]
    )
    loaded = PromptedClassifier.from_pretrained(tmp_path / "run" / "prompt")
    images = torch.rand(3, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(loaded(images), classifier.eval()(images))
    assert loaded.fold() is loaded  # the logits of a text come from its own view
    with pytest.raises(UserError, match="the several prompt of .* cannot be folded"):
        loaded.save_pretrained(tmp_path / "folded", folded=True)


def test_clusters_are_those_of_separate_clouds():
    numbers = np.random.default_rng(0)
    centres = numbers.normal(size=(3, 8)) * 10
    owner = np.array([2, 0, 1] * 10)
    points = centres[owner] + numbers.normal(size=(30, 8)) * 0.1
    found = clusters(points, 3, seed=1)
    assert found == [(1, 2, 0)[place] for place in owner.tolist()]  # numbered as they come
    assert clusters(points, 3, seed=1) == found
    with pytest.raises(UserError, match="3 prompts are more than the texts that differ"):
        clusters(np.ones((5, 2)), 3, seed=0)


def test_what_does_not_go_with_several_prompts_is_one_line(config, tiny_task, tiny_model, tiny_timm):
    source: type[Source] | str = tiny_model("open_clip_vit")
    cases = [
        (
            {"source": tiny_timm, "canvas": 32, "mapping": {"kind": "blm", "templates": None, "top_k": None}},
            "closed",
        ),
        ({"source": source, "views": 99}, "99 prompts are more than the 12 texts"),
        ({"source": source, "view_by": "groups"}, "as many groups of texts, there are none"),
        ({"source": source, "mapping": {"kind": "prototypes"}}, "takes features"),
    ]
    for given, words in cases:
        given = dict(given)
        mapping = given.pop("mapping", {})
        if mapping.get("kind") == "blm":
            mapping = {"kind": "blm", "templates": None}
        with pytest.raises(UserError, match=words) as error:
            classifier_of(config, tiny_task, given.pop("source"), mapping, **given)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="kind none are one"):
        PromptConfig(kind="none", views=2)
    with pytest.raises(UserError, match="prompt.views: 0"):
        PromptConfig(views=0)
