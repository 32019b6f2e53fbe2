"""The prompted classifier is prompt, then source, then mapping; what is saved is what is loaded, or an error."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import coloured_images, photo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

import clipvp.artifact.save
from clipvp import PromptedClassifier, Task, UserError, build_classifier, load_source
from clipvp.artifact.format import write_artifact
from clipvp.config.values import from_dict
from clipvp.mappings.base import LabelMapping
from clipvp.mappings.frequency import FrequencyMapping
from clipvp.mappings.random import RandomMapping
from clipvp.mappings.statistic import Counts
from clipvp.prompts.base import VisualPrompt
from clipvp.prompts.full import FullPrompt
from clipvp.prompts.padding import PaddingPrompt
from clipvp.results.tables import mapping_rows

NAMES = ["red thing", "Grün", "青"]
PROMPTS = {
    "padding": {"kind": "padding", "image_size": 17},
    "border": {"kind": "border", "width": 5, "space": "normalized"},
    "patch": {"kind": "patch", "patch_size": 9, "patch_position": [3, 4], "clip": True},
    "full": {"kind": "full"},
    "none": {"kind": "none"},
}


def task() -> Task:
    return Task.from_dataset(coloured_images(6, 3), coloured_images(3, 3), class_names=NAMES)


def made(source: str, prompt: str = "padding", mapping: str = "frequency", **options) -> PromptedClassifier:
    """Return a classifier with something learned in it."""
    values = {
        "source": {"name": source, "canvas": 32},
        "prompt": PROMPTS[prompt],
        "mapping": {"kind": mapping},
    }
    classifier = build_classifier(from_dict({**values, **options}), task())
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in classifier.prompt.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    if classifier.mapping.due(0):
        counts = torch.randint(0, 9, (len(classifier.source.labels), 3), generator=generator)
        classifier.mapping.fit(Counts.from_matrix(counts))
    return classifier.eval()


def images_for(classifier, count: int = 4) -> torch.Tensor:
    return torch.rand(count, 3, *classifier.resize.size, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def saved(tiny_timm, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "prompt"
    made(tiny_timm).save_pretrained(folder)
    return folder


@pytest.fixture
def one_source(tiny_timm, monkeypatch):
    """Load the source once, so that many damaged prompts are read quickly."""
    source = load_source(tiny_timm, canvas=32)

    def load(name, *, canvas, labels, precision, device, revision, local_files_only, text_tower, **options):
        if name != tiny_timm or tuple(canvas) != (32, 32) or not text_tower or options:
            raise UserError(f"another source: {name!r} at {canvas} with {options}, {text_tower}")
        source.outputs = "logits"
        return source

    monkeypatch.setattr(clipvp.artifact.save, "load_source", load)


# What it computes


@pytest.mark.parametrize("prompt", PROMPTS)
def test_it_is_the_mapping_of_the_source_of_the_prompt(prompt, tiny_timm):
    classifier = made(tiny_timm, prompt)
    images = images_for(classifier)
    with torch.no_grad():
        source_logits = classifier.source(classifier.prompt(images))
        outputs = classifier.source_outputs(images)
        torch.testing.assert_close(outputs, source_logits, rtol=1e-4, atol=1e-5)
        assert torch.equal(classifier.source_logits(outputs), outputs)
        expected = source_logits[:, classifier.mapping.source_index]
        torch.testing.assert_close(classifier(images), expected, rtol=1e-4, atol=1e-5)


def test_after_a_change_of_the_prompt_nothing_old_is_used(tiny_timm):
    classifier = made(tiny_timm)
    images = images_for(classifier)
    with torch.no_grad():
        before = classifier(images)
        classifier.prompt.delta.mul_(-3)
        torch.testing.assert_close(
            classifier.source_outputs(images),
            classifier.source(classifier.prompt(images)),
            rtol=1e-4,
            atol=1e-5,
        )
        assert not torch.allclose(classifier(images), before)


class TwoParts(PaddingPrompt):
    """A frame of two factors, ``sigmoid(delta) * gain``, and a buffer that is added to it."""

    def __init__(self):
        super().__init__((32, 32), (17, 17))
        self.gain = nn.Parameter(torch.ones(3, 1, 1))
        self.register_buffer("shift", torch.zeros(3, 1, 1))

    def pixels(self, delta):
        return (torch.sigmoid(delta) * self.gain + self.shift) * self.mask


CHANGES = {
    "delta in place": lambda prompt: prompt.delta.add_(-3),
    "gain in place": lambda prompt: prompt.gain.mul_(0.5),
    "the buffer in place": lambda prompt: prompt.shift.add_(0.2),
    "one number of the gain": lambda prompt: prompt.gain[1].fill_(0.1),
    "another tensor as gain": lambda prompt: setattr(prompt, "gain", nn.Parameter(prompt.gain * 0.5)),
    "the data of the gain": lambda prompt: setattr(prompt.gain, "data", prompt.gain * 0.5),
    "a loaded state": lambda prompt: prompt.load_state_dict(
        {name: value * 0.5 for name, value in prompt.state_dict().items()}
    ),
}


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_a_change_of_any_part_of_a_prompt_is_seen_at_the_next_forward(change, tiny_timm):
    source = load_source(tiny_timm, canvas=32)
    classifier = PromptedClassifier(TwoParts(), source, RandomMapping(20, 3), NAMES)
    images = images_for(classifier)

    def check() -> torch.Tensor:
        logits = classifier.source_outputs(images)
        torch.testing.assert_close(logits, source(classifier.prompt(images)), rtol=1e-4, atol=1e-5)
        return logits

    before = check()
    assert source._held and torch.equal(check(), before)  # the border is held, and nothing changed
    CHANGES[change](classifier.prompt)
    assert not torch.allclose(check(), before, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_two_prompts_on_one_source_never_get_each_others_border(tiny_timm):
    source = load_source(tiny_timm, canvas=32)
    classifiers = []
    for value in (-2.0, 2.0):
        prompt = PaddingPrompt((32, 32), (17, 17))
        prompt.delta.fill_(value)
        classifiers.append(PromptedClassifier(prompt, source, RandomMapping(20, 3), NAMES))
    images = images_for(classifiers[0])
    for classifier in [*classifiers, *classifiers]:
        plain = source(classifier.prompt(images))
        torch.testing.assert_close(classifier.source_outputs(images), plain, rtol=1e-4, atol=1e-5)


# Several views, features


class Views(VisualPrompt):
    """Two prompts on each image; the mean of what the source gives for them."""

    kind, views = "views", 2

    def __init__(self, canvas):
        super().__init__(canvas, canvas)
        generator = torch.Generator().manual_seed(3)
        self.deltas = nn.Parameter(0.3 * torch.randn(2, 3, *self.canvas, generator=generator))

    def forward(self, images):
        self.check(images)
        return torch.cat([images + delta for delta in self.deltas])

    def merge(self, outputs):
        return outputs.view(2, -1, *outputs.shape[1:]).mean(0)


class Linear(LabelMapping):
    """A linear layer on features or logits; no source label is behind a class."""

    kind = "linear"

    def __init__(self, num_source, num_target, takes="features"):
        super().__init__(num_source, num_target)
        self.takes = takes
        self.layer = nn.Linear(num_source, num_target)

    def forward(self, outputs):
        return self.layer(outputs)


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("outputs", ["logits", "features"])
def test_several_views_are_a_loop_over_single_prompts(outputs, count, tiny_timm):
    source = load_source(tiny_timm, canvas=32)
    source.outputs = outputs
    run = source if outputs == "logits" else source.encode
    size = 20 if outputs == "logits" else source.num_features
    mapping = Linear(size, 3, outputs)
    classifier = PromptedClassifier(Views((32, 32)), source, mapping, NAMES).eval()
    images = images_for(classifier, count)
    weights = torch.randn(count, 3, generator=torch.Generator().manual_seed(5))

    singles = []
    for delta in classifier.prompt.deltas:
        single = FullPrompt((32, 32))
        with torch.no_grad():
            single.delta.copy_(delta)
        singles.append(single)
    expected = sum(run(single(images)) for single in singles) / 2
    (mapping(expected) * weights).sum().backward()
    gradients = torch.stack([single.delta.grad for single in singles])
    mapping.zero_grad()

    found = classifier.source_outputs(images)
    assert found.shape == (count, size)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    logits = classifier(images)
    torch.testing.assert_close(logits, mapping(expected), rtol=1e-4, atol=1e-5)
    (logits * weights).sum().backward()
    grad = classifier.prompt.deltas.grad
    assert (grad - gradients).norm() < 1e-4 * gradients.norm() and gradients.norm() > 0
    assert classifier.num_trainable() == classifier.prompt.deltas.numel() + 3 * size + 3
    assert {name: len(own) for name, own in classifier.parameter_groups().items()} == {
        "prompt": 1,
        "mapping": 2,
    }


@pytest.mark.parametrize("prompt", ["padding", "border"])
def test_a_mapping_may_take_features_and_logits_follow_from_them(prompt, tiny_timm):
    plain = made(tiny_timm, prompt)
    source = plain.source
    source.outputs = "features"
    mapping = Linear(source.num_features, 3)
    classifier = PromptedClassifier(plain.prompt, source, mapping, NAMES).eval()
    images = images_for(classifier)
    with torch.no_grad():
        features, pixels = classifier.source_outputs(images), classifier.prompt(images)
        torch.testing.assert_close(features, source.encode(pixels), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(classifier.source_logits(features), source(pixels), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(classifier(images), mapping.layer(features))


def test_only_the_prompt_trains(tiny_timm):
    classifier = made(tiny_timm)
    trained = [name for name, parameter in classifier.named_parameters() if parameter.requires_grad]
    assert trained == ["prompt.delta"]
    assert classifier.num_trainable() == 3 * (32 * 32 - 17 * 17)
    assert classifier.source_is_frozen
    groups = classifier.parameter_groups()
    assert list(groups) == ["prompt"] and groups["prompt"] == [classifier.prompt.delta]
    classifier.train()
    assert not classifier.source.training


def test_parts_that_do_not_fit_are_refused(tiny_timm):
    source = load_source(tiny_timm, canvas=32)
    with pytest.raises(ValueError, match=r"canvas \(16, 16\) is not the source's \(32, 32\)"):
        PromptedClassifier(PaddingPrompt((16, 16), (8, 8)), source, RandomMapping(20, 3), NAMES)
    prompt = PaddingPrompt((32, 32), (8, 8))
    with pytest.raises(ValueError, match="20 logits to 4 classes does not fit 20 logits and 3 classes"):
        PromptedClassifier(prompt, source, RandomMapping(20, 4), NAMES)
    with pytest.raises(ValueError, match="the mapping takes features, and the source gives logits"):
        PromptedClassifier(prompt, source, Linear(20, 3), NAMES)
    source.outputs = "features"
    size = source.num_features
    with pytest.raises(ValueError, match=f"20 features to 3 classes does not fit {size} features"):
        PromptedClassifier(prompt, source, Linear(20, 3), NAMES)


def test_what_was_trained_is_taken_over_strictly(tiny_timm):
    one, other = made(tiny_timm), made(tiny_timm, mapping="random")
    other.mapping = copy.deepcopy(one.mapping)
    with torch.no_grad():
        other.prompt.delta.zero_()
    state = {name: value.clone() for name, value in one.trained_state().items()}
    other.load_trained_state(state)
    images = images_for(one)
    with torch.no_grad():
        assert torch.equal(one(images), other(images))
    with pytest.raises(ValueError, match="prompt.delta"):
        other.load_trained_state({**state, "prompt.delta": torch.zeros(3, 4, 4)})
    with pytest.raises(ValueError, match="surplus"):
        other.load_trained_state({**state, "surplus": torch.zeros(1)})
    del state["prompt.delta"]
    with pytest.raises(ValueError, match="prompt.delta"):
        other.load_trained_state(state)


# Saved equals loaded


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("mapping", ["frequency", "random"])
def test_saved_equals_loaded_to_the_bit(prompt, mapping, tiny_timm, tmp_path):
    classifier = made(tiny_timm, prompt, mapping)
    classifier.save_pretrained(tmp_path / "prompt")
    again = PromptedClassifier.from_pretrained(tmp_path / "prompt")
    images = images_for(classifier)
    with torch.no_grad():
        assert torch.equal(again(images), classifier(images))
    assert again.class_names == classifier.class_names and again.resize == classifier.resize
    picture = photo(30, 40)
    assert again.predict(picture) == classifier.predict(picture)
    labels = classifier.source.labels
    assert mapping_rows(again.mapping.links(), labels.names, NAMES) == mapping_rows(
        classifier.mapping.links(), labels.names, NAMES
    )
    again.save_pretrained(tmp_path / "twice")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "twice" / name).read_bytes() == (tmp_path / "prompt" / name).read_bytes()


def test_a_saved_prompt_is_small_and_holds_no_weights_of_the_source(saved):
    tensors = load_file(saved / "model.safetensors")
    assert set(tensors) == {
        "prompt.delta",
        "mapping.source_index",
        "mapping.chosen_count",
        "mapping.class_count",
    }
    config = json.loads((saved / "config.json").read_text())
    assert config["version"] == 2 and config["class_names"] == NAMES
    assert {"prompt", "mapping", "source", "preprocessing"} <= set(config)
    assert config["source"]["fingerprint"] and config["preprocessing"]["mean"]


# Loading is strict


def damaged(saved: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved, tmp_path / "damaged")
    return tmp_path / "damaged"


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as error:
        PromptedClassifier.from_pretrained(folder)
    message = str(error.value)
    assert "\n" not in message and len(message) < 500, message
    return message


def edit(folder: Path, change, honest: bool = True) -> None:
    """Change the config; with its digest made anew if ``honest``, so that what is wrong is found without it."""
    config = json.loads((folder / "config.json").read_text())
    change(config)
    if honest:
        write_artifact(folder, config, load_file(folder / "model.safetensors"))
    else:
        (folder / "config.json").write_text(json.dumps(config))


def change_tensors(folder: Path, change, honest: bool = True) -> None:
    """Change the tensors; with the digest made anew if ``honest``."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    if honest:
        edit(folder, lambda config: None)


@pytest.mark.parametrize(
    "change, word",
    [
        (lambda t: t.pop("prompt.delta"), "missing or extra tensors: prompt.delta"),
        (lambda t: t.update({"prompt.more": torch.ones(1)}), "missing or extra tensors: prompt.more"),
        (lambda t: t.update({"prompt.delta": torch.ones(3, 4, 4)}), "(3, 4, 4)"),
        (lambda t: t.update({"prompt.delta": torch.ones(3, 32, 32).half()}), "float16"),
        (lambda t: t.update({"mapping.source_index": torch.tensor([0, 1, 20])}), "outside 0..19"),
        (lambda t: t.update({"mapping.source_index": torch.tensor([0, 1, -1])}), "ever fitted?"),
        (lambda t: t.update({"mapping.source_index": torch.tensor([0, 1, -2])}), "outside 0..19"),
        (lambda t: t.update({"mapping.source_index": torch.tensor([0, 1])}), "(2,)"),
    ],
)
def test_tensors_that_do_not_fit(change, word, saved, tmp_path, one_source):
    folder = damaged(saved, tmp_path)
    change_tensors(folder, change)
    message = refused(folder)
    assert word in message and "damaged" in message


TENSORS = ["prompt.delta", "mapping.source_index", "mapping.chosen_count", "mapping.class_count"]


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_that_is_not_as_it_was_written_is_refused(name, saved, tmp_path, one_source):
    folder = damaged(saved, tmp_path)
    change_tensors(folder, lambda tensors: tensors[name].view(-1)[:1].add_(1), honest=False)
    assert "config.json and model.safetensors are not as they were written" in refused(folder)


@pytest.mark.parametrize(
    "change, word",
    [
        (lambda c: c.update(version=3), "format version 3"),
        (lambda c: c.update(version=0), "format version 0"),
        (lambda c: c.update(version="1"), "format version"),
        (lambda c: c.update(format="other"), "not the config of a clipvp prompt"),
        (lambda c: c.pop("mapping"), "'mapping'"),
        (lambda c: c["source"].pop("fingerprint"), "'source.fingerprint'"),
        (lambda c: c["source"].update(fingerprint="0" * 16), "another version of the model"),
        (lambda c: c["source"].update(name=5), "'source.name'"),
        (lambda c: c["source"].update(canvas=[32]), "source.canvas"),
        (lambda c: c["source"].update(outputs="features"), "takes logits, and the source gives features"),
        (lambda c: c["source"].update(options={"a": 1}), "'a'"),
        (lambda c: c["source"].update(labels={"a": 1}), "not one of texts"),
        (lambda c: c["prompt"].update(kind="padded"), "did you mean 'padding'"),
        (lambda c: c["prompt"].update(image_size=[99, 99]), "99x99"),
        (lambda c: c["prompt"].update(nonsense=1), "nonsense"),
        (
            lambda c: c["mapping"].update(num_target=4),
            "'mapping.source_index' is torch.int64 (3,), not torch.int64 (4,)",
        ),
        (lambda c: c["class_names"].append("more"), "4 classes"),
        (lambda c: c.update(class_names=[1, 2, 3]), "'class_names'"),
    ],
)
def test_configs_that_do_not_fit(change, word, saved, tmp_path):
    folder = damaged(saved, tmp_path)
    edit(folder, change)
    assert word in refused(folder)


def test_another_models_weights_are_refused(saved, tmp_path):
    """The source of the same name has changed since."""
    folder = damaged(saved, tmp_path)
    source = Path(json.loads((folder / "config.json").read_text())["source"]["name"].rpartition(":")[2])
    shutil.copytree(source, tmp_path / "source")
    weights = load_file(tmp_path / "source" / "model.safetensors")
    next(iter(weights.values())).view(-1)[:1].add_(1)
    save_file(weights, tmp_path / "source" / "model.safetensors")
    edit(folder, lambda c: c["source"].update(name=f"timm:local-dir:{tmp_path / 'source'}"))
    assert "another version of the model" in refused(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"[]", b"\xff\xfe\xff", b"{" * 1000])
def test_files_that_are_missing_or_something_else(name, content, saved, tmp_path):
    folder = damaged(saved, tmp_path)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    assert "damaged" in refused(folder)


def test_a_folder_that_is_not_a_prompt_or_not_there(tmp_path):
    assert "config.json and model.safetensors missing" in refused(tmp_path)
    assert "there is no folder" in refused(tmp_path / "nothing")


ODD = [
    None,
    True,
    -1,
    0,
    1,
    3.5,
    10**12,
    "",
    "x",
    "padding",
    [],
    [1],
    [1, 2],
    [-3, 5],
    ["a", "b"],
    {},
    {"a": 1},
]


def places(value, path=()):
    """Return the paths of everything inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [place for key, item in inner for place in places(item, (*path, key))]


@pytest.fixture
def original(saved, one_source) -> list[list[dict]]:
    """What the saved prompt predicts."""
    return PromptedClassifier.from_pretrained(saved).predict(PHOTOS)


PHOTOS = [photo(9, 9), photo(30, 21, seed=1)]
ANY_CHANGE = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def draw_change(data, config) -> None:
    """Take away one key of a config, or put another value in some place of it."""
    path = data.draw(st.sampled_from(places(config)))
    target = config
    for key in path[:-1]:
        target = target[key]
    if data.draw(st.booleans()) and isinstance(target, dict):
        del target[path[-1]]
    else:
        target[path[-1]] = data.draw(st.sampled_from(ODD))


@ANY_CHANGE
@given(data=st.data())
def test_any_change_of_a_config_is_refused(data, saved, tmp_path_factory, original):
    """The digest covers the config too: what loads is what was written."""
    config = json.loads((saved / "config.json").read_text())
    written = json.dumps(config, sort_keys=True)
    draw_change(data, config)
    folder = tmp_path_factory.mktemp("changed")
    shutil.copy(saved / "model.safetensors", folder)
    (folder / "config.json").write_text(json.dumps(config))
    if json.dumps(config, sort_keys=True) == written:
        assert PromptedClassifier.from_pretrained(folder).predict(PHOTOS) == original
    else:
        refused(folder)


@ANY_CHANGE
@given(data=st.data())
def test_any_change_with_a_new_digest_is_refused_or_harmless(data, saved, tmp_path_factory, original):
    """Only class names may be others; scores and source labels stay as they are, to the bit."""
    config = json.loads((saved / "config.json").read_text())
    draw_change(data, config)
    folder = tmp_path_factory.mktemp("changed")
    write_artifact(folder, config, load_file(saved / "model.safetensors"))
    try:
        classifier = PromptedClassifier.from_pretrained(folder)
    except UserError as error:
        assert "\n" not in str(error)
        return
    names = dict(zip(NAMES, config["class_names"], strict=True))
    expected = [[{**row, "label": names[row["label"]]} for row in rows] for rows in original]
    assert classifier.predict(PHOTOS) == expected


def test_a_prompt_that_was_never_fitted_says_so(tiny_timm, tmp_path):
    classifier = made(tiny_timm)
    classifier.mapping = FrequencyMapping(20, 3)
    classifier.save_pretrained(tmp_path)
    assert "was it ever fitted?" in refused(tmp_path)
