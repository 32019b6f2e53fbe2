"""A config is plain values: it survives every way of writing it down, and refuses what is not allowed."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from clipvp.config.schema import (
    DataConfig,
    MappingConfig,
    OptimConfig,
    PromptConfig,
    RunConfig,
    SourceConfig,
    TrainConfig,
)
from clipvp.config.values import differences, from_dict, to_dict
from clipvp.registry import Entry, Registry, UserError, nearest
from clipvp.results.folder import config_yaml
from clipvp.search.space import SweepRunConfig

CONFIGS = Path(__file__).parents[2] / "recipes" / "configs"

OPTIONAL_COUNT = st.none() | st.integers(1, 10**9)
SOURCES = st.builds(
    SourceConfig,
    name=st.sampled_from(["offline:lite0", "timm:resnet18.a1_in1k", "hf:./a folder/é"]),
    canvas=st.none() | st.integers(1, 999) | st.lists(st.integers(1, 999), min_size=2, max_size=2),
    precision=st.sampled_from(["fp32", "bf16", "fp16"]),
    revision=st.none() | st.text(min_size=1, max_size=5),
    local_files_only=st.booleans(),
)
PROMPTS = st.one_of(
    st.builds(PromptConfig, kind=st.just("padding"), image_size=OPTIONAL_COUNT, share_border=st.booleans()),
    st.builds(PromptConfig, kind=st.just("border"), width=st.integers(1, 99), clip=st.booleans()),
    st.builds(
        PromptConfig,
        kind=st.just("patch"),
        patch_position=st.lists(st.integers(0, 99), min_size=2, max_size=2),
        space=st.sampled_from(["pixel", "normalized"]),
    ),
    st.builds(PromptConfig, kind=st.sampled_from(["full", "none"])),
)
MAPPINGS = st.one_of(
    st.builds(
        MappingConfig,
        kind=st.just("frequency"),
        refresh=st.just("never") | st.integers(1, 50),
        assignment=st.sampled_from(["greedy", "optimal"]),
        statistics=st.sampled_from(["exact", "running"]),
    ),
    st.builds(
        MappingConfig,
        kind=st.sampled_from(["random", "identity"]),
        templates=st.none() | st.lists(st.just("a {}"), min_size=1),
        class_names=st.none()
        | st.dictionaries(st.text(min_size=1, max_size=3), st.text(max_size=3), max_size=2),
    ),
)
DATA = st.builds(
    DataConfig,
    name=st.sampled_from(["digits", "./a: b", "org/name"]),
    shots=OPTIONAL_COUNT,
    val=st.floats(0, 0.99),
)
OPTIMS = st.builds(
    OptimConfig,
    name=st.sampled_from(["adam", "adamw", "sgd"]),
    lr=st.floats(1e-30, 1e30),
    milestones=st.lists(st.floats(0, 1), max_size=3),
)
RUNS = st.builds(
    RunConfig,
    source=SOURCES,
    prompt=PROMPTS,
    mapping=MAPPINGS,
    data=DATA,
    optim=OPTIMS,
    train=st.builds(TrainConfig, epochs=st.integers(1, 10**6), progress=st.booleans()),
    seed=st.integers(0, 2**40),
    output=st.none() | st.just("runs/x y"),
)


@settings(max_examples=30, deadline=None)
@given(RUNS)
def test_a_config_survives_dictionaries_json_and_yaml(config):
    values = to_dict(config)
    assert from_dict(values) == config
    assert from_dict(json.loads(json.dumps(values))) == config
    assert from_dict(yaml.safe_load(yaml.safe_dump(values))) == config
    assert from_dict(yaml.safe_load(config_yaml(config))) == config


def test_missing_keys_take_their_defaults():
    assert from_dict({}) == RunConfig()
    assert from_dict({"train": {"epochs": 3}}) == RunConfig(train=TrainConfig(epochs=3))


def test_how_a_run_was_started_is_not_written_down():
    values = yaml.safe_load(config_yaml(RunConfig(resume="auto", overwrite=True)))
    assert "resume" not in values and "overwrite" not in values


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_of_the_recipes_is_one(path):
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    config = from_dict(values, SweepRunConfig if "sweep" in values else RunConfig)
    assert isinstance(config, RunConfig)


def test_the_papers_configs_are_the_papers_settings():
    for path in (CONFIGS / "paper").glob("res*.yaml"):
        config = from_dict(yaml.safe_load(path.read_text(encoding="utf-8")))
        assert config.train.epochs == 200 and config.train.batch_size == 128 and config.seed == 7
        assert config.train.protocol == "paper"
        assert (config.optim.name, config.optim.lr, config.optim.schedule) == ("adam", 0.01, "multistep")
        assert config.optim.milestones == [0.5, 0.72] and config.optim.gamma == 0.1
        assert config.prompt.kind == "padding" and config.source.canvas == 224


def test_numbers_that_yaml_reads_as_text_are_numbers():
    assert yaml.safe_load("lr: 1e-3") == {"lr": "1e-3"}
    assert from_dict({"optim": {"lr": "1e-3"}}).optim.lr == 0.001
    assert from_dict({"optim": {"lr": 1}}).optim.lr == 1.0


@pytest.mark.parametrize(
    "values, words",
    [
        ({"optm": {}}, ["optm", "did you mean 'optim"]),
        ({"optim": {"lrr": 1}}, ["'optim.lrr'", "did you mean 'optim.lr'", "optim.name is 'adam'"]),
        ({"optim": 3}, ["optim", "3", "section"]),
        ([], ["the whole is []"]),
        ({"optim": {"lr": "fast"}}, ["optim.lr", "'fast'", "a finite number"]),
        ({"optim": {"lr": True}}, ["optim.lr", "True"]),
        ({"optim": {"milestones": [0.5, "a"]}}, ["optim.milestones"]),
        ({"train": {"epochs": "three"}}, ["train.epochs", "'three'", "a whole number"]),
        ({"train": {"epochs": 2.5}}, ["train.epochs", "2.5"]),
        ({"train": {"progress": "maybe"}}, ["train.progress", "maybe"]),
        ({"source": {"canvas": "big"}}, ["source.canvas", "'big'"]),
        ({"seed": None}, ["seed", "null", "a whole number"]),
        ({"prompt": {"kind": "bordr"}}, ["prompt", "'bordr'", "did you mean 'border'"]),
        ({"mapping": {"kind": "freqency"}}, ["mapping", "did you mean 'frequency'"]),
    ],
)
def test_what_is_wrong_is_named_with_what_is_allowed(values, words):
    with pytest.raises(UserError) as error:
        from_dict(values)
    assert all(word in str(error.value) for word in words), str(error.value)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: SourceConfig(precision="fp8"), ["source.precision", "fp8", "fp32, bf16, fp16"]),
        (lambda: SourceConfig(canvas=0), ["source.canvas", "0"]),
        (lambda: SourceConfig(canvas=[1, 2, 3]), ["source.canvas", "[height, width]"]),
        (lambda: PromptConfig(kind="full", space="norm"), ["prompt.space", "did you mean 'normalized'"]),
        (lambda: PromptConfig(kind="border", width=0), ["prompt.width"]),
        (
            lambda: PromptConfig(width=3),
            ["'prompt.width'", "a key of border", "prompt.kind is 'padding'", "image_size"],
        ),
        (
            lambda: PromptConfig(kind="border", widht=3),
            ["did you mean 'prompt.width'", "prompt.kind is 'border'"],
        ),
        (lambda: OptimConfig(groups={"mapping": {"lrr": 1}}), ["optim.groups.mapping", "did you mean 'lr'"]),
        (lambda: OptimConfig(groups={"mapping": {"lr": -1}}), ["optim.groups.mapping", "optim.lr", "-1"]),
        (lambda: OptimConfig(groups={"mapping": 3}), ["optim.groups.mapping", "3"]),
        (lambda: PromptConfig(image_size=-1), ["prompt.image_size", "-1"]),
        (lambda: PromptConfig(kind="patch", patch_position=[1, -2]), ["prompt.patch_position"]),
        (lambda: MappingConfig(refresh="often"), ["mapping.refresh", "often", "never"]),
        (lambda: MappingConfig(refresh=0), ["mapping.refresh"]),
        (lambda: MappingConfig(assignment="best"), ["mapping.assignment", "greedy, optimal"]),
        (lambda: MappingConfig(statistics="no"), ["mapping.statistics", "exact, running"]),
        (lambda: DataConfig(on_error="ignore"), ["data.on_error", "raise, skip"]),
        (lambda: DataConfig(shots=0), ["data.shots"]),
        (lambda: DataConfig(val=1.0), ["data.val"]),
        (lambda: DataConfig(test=0.0), ["data.test"]),
        (lambda: DataConfig(shots=1, max_train=1), ["data.shots", "data.max_train", "one of them"]),
        (lambda: DataConfig(name=""), ["data.name", "digits"]),
        (lambda: OptimConfig(name="adm"), ["unknown optimiser 'adm'", "did you mean 'adam'"]),
        (lambda: OptimConfig(lr=0), ["optim.lr"]),
        (lambda: OptimConfig(lr=NAN), ["optim.lr", "nan"]),
        (lambda: OptimConfig(lr=INF), ["optim.lr", "inf"]),
        (lambda: OptimConfig(lr=1e39), ["optim.lr", "1e+39", "at most 3.4e+38"]),
        (lambda: OptimConfig(schedule="linear"), ["optim.schedule", "cosine"]),
        (lambda: OptimConfig(milestones=[50, 72]), ["optim.milestones", "shares"]),
        (lambda: OptimConfig(warmup=2), ["optim.warmup"]),
        (lambda: OptimConfig(name="sgd", momentum=-1), ["optim.momentum"]),
        (lambda: TrainConfig(epochs=0), ["train.epochs"]),
        (lambda: TrainConfig(batch_size=0), ["train.batch_size"]),
        (lambda: TrainConfig(protocol="best"), ["train.protocol", "val, paper"]),
        (lambda: TrainConfig(keep_core="of"), ["train.keep_core", "'of'", "off"]),
        (lambda: TrainConfig(keep_core=""), ["train.keep_core", "memory"]),
        (lambda: TrainConfig(test_every_epoch=True), ["train.test_every_epoch", "train.protocol: paper"]),
        (lambda: RunConfig(resume="yes"), ["resume", "auto, never"]),
    ],
)
def test_values_that_are_not_allowed(make, words):
    with pytest.raises(UserError) as error:
        make()
    message = str(error.value)
    assert all(word in message for word in words) and "\n" not in message, message


def test_runs_of_another_task_source_or_seed_go_to_other_folders():
    base = RunConfig()
    others = [
        RunConfig(data=DataConfig("digits")),
        RunConfig(source=SourceConfig("timm:resnet18")),
        RunConfig(seed=1),
    ]
    folders = {config.output for config in [base, *others]}
    assert len(folders) == 4 and all(folder.startswith("runs/") for folder in folders)


def test_every_key_is_explained():
    for section in [RunConfig, *(f.default_factory for f in dataclasses.fields(RunConfig))]:
        if dataclasses.is_dataclass(section):
            for field in dataclasses.fields(section):
                assert f"        {field.name}: " in section.__doc__, (section, field.name)


# The tables of names


def test_a_registry_refuses_a_name_that_is_taken_and_offers_the_nearest():
    registry = Registry("fruit", {"apple": Entry("os.path", "join"), "pear": Entry("os.path", "split")})
    import os

    assert registry.get("apple") is os.path.join and registry.names() == ["apple", "pear"]
    assert registry.register("plum", 3) == 3 and "plum" in registry

    @registry.register("fig")
    def fig():
        return 1

    assert registry.get("fig") is fig
    with pytest.raises(ValueError, match="fruit 'pear' is registered already"):
        registry.register("pear", 4)
    with pytest.raises(UserError, match="unknown fruit 'appel'; did you mean 'apple'"):
        registry.get("appel")


def test_of_a_long_list_an_error_shows_the_nearest_few():
    few, many = [f"model-{i}" for i in range(12)], [*(f"Model-{i}" for i in range(1000)), "other"]
    assert nearest("model-3", few) == f"did you mean 'model-3'? allowed: {', '.join(few)}"
    found = nearest("othr", many)
    assert found.startswith("did you mean 'other'? allowed: other, ") and found.endswith(" and 996 more")
    assert nearest("model-77", many).startswith("did you mean 'Model-77'? allowed: Model-77, ")
    nothing = nearest("", many)
    assert nothing.startswith("allowed: ") and nothing.count(", ") == 4 and len(nothing) < 100


def test_a_config_that_was_written_before_a_key_was_there_differs_in_nothing():
    config = to_dict(RunConfig(seed=3))
    older = {**config, "train": {k: v for k, v in config["train"].items() if k != "augment"}}
    del older["mapping"]
    assert differences(older, config) == []
    assert differences(older, to_dict(RunConfig(seed=4))) == ["seed: 3, not 4"]
    config["train"]["augment"] = "flip"
    assert differences(older, config) == ["train.augment: 'none', not 'flip'"]
