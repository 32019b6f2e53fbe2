"""The paper's thirteen tasks on its four models: two files each, and nothing but the task differs."""

from pathlib import Path

import pytest

from clipvp.config.parse import parse
from clipvp.config.values import flat, to_dict
from clipvp.registry import TASKS

PAPER = Path(__file__).parents[2] / "recipes" / "configs" / "paper"
MODELS = {  # source, prompt, optimiser, rate, schedule
    "resnet18": ("timm:resnet18.tv_in1k", "padding", "adam", 0.01, "multistep"),
    "resnet50": ("timm:resnet50.tv2_in1k", "padding", "adam", 0.01, "multistep"),
    "resnext101_ig": ("timm:resnext101_32x8d.fb_wsl_ig1b_ft_in1k", "padding", "adam", 0.01, "multistep"),
    "clip_vit_b32": ("open_clip:ViT-B-32-quickgelu/openai", "border", "sgd", 40.0, "cosine"),
}
TASK_SETTINGS = {  # image size, batch
    "flowers102": (128, 128),
    "dtd": (128, 64),
    "ucf101": (128, 128),
    "food101": (128, 128),
    "gtsrb": (32, 128),
    "eurosat": (128, 128),
    "oxfordpets": (128, 64),
    "stanfordcars": (128, 128),
    "sun397": (128, 128),
    "cifar10": (32, 128),
    "cifar100": (32, 128),
    "svhn": (32, 128),
    "abide": (200, 64),
}


BASELINES = {"linear_probe", "finetune"}


def test_there_is_a_file_for_each_and_no_other():
    assert {path.stem for path in PAPER.glob("*.yaml")} == set(MODELS) | BASELINES
    assert {path.stem for path in (PAPER / "tasks").glob("*.yaml")} == set(TASK_SETTINGS)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("task", TASK_SETTINGS)
def test_every_task_on_every_model_resolves(task, model):
    files = [f"--config={PAPER / f'{model}.yaml'}", f"--config={PAPER / 'tasks' / f'{task}.yaml'}"]
    base, config = (parse("a test", arguments=arguments)[0] for arguments in (files[:1], files))
    source, kind, name, lr, schedule = MODELS[model]
    assert (config.source.name, config.prompt.kind) == (source, kind)
    assert (config.optim.name, config.optim.lr, config.optim.schedule) == (name, lr, schedule)
    assert config.train.epochs == 200 and config.train.protocol == "paper" and config.seed == 7
    assert config.train.test_every_epoch and config.data.names == "reference"
    assert config.data.name == task and task in TASKS
    image_size, batch_size = TASK_SETTINGS[task]
    assert config.train.batch_size == batch_size
    assert (
        kind == "border" or config.prompt.image_size == image_size
    )  # a border is on an image of the model's size
    assert config.output == f"runs/{task}-{source.partition(':')[2].replace('/', '-')}-seed7"
    ours, theirs = flat(to_dict(config)), flat(to_dict(base))
    differ = {key for key in ours if ours[key] != theirs[key]}
    assert differ <= {"data.name", "prompt.image_size", "train.batch_size", "output"}


def test_the_baselines_follow_the_file_of_a_model():
    files = [PAPER / "resnet18.yaml", PAPER / "tasks" / "dtd.yaml"]
    probe, tuned = (
        parse("a test", arguments=[f"--config={file}" for file in (*files, PAPER / f"{name}.yaml")])[0]
        for name in ("linear_probe", "finetune")
    )
    assert (probe.prompt.kind, probe.prompt.squash, probe.mapping.takes) == ("none", True, "features")
    assert (probe.optim.lr, probe.optim.milestones, probe.train.epochs) == (0.1, [0.5, 0.72], 200)
    assert (tuned.optim.lr, tuned.optim.weight_decay, tuned.optim.schedule) == (1e-4, 5e-4, "cosine_epoch")
    assert tuned.source.precision == "fp32" and tuned.train.augment == "crop_flip"
    assert (tuned.train.epochs, tuned.train.batch_size, tuned.train.protocol) == (200, 64, "paper")


@pytest.mark.parametrize("model", ["clip_vit_b16", "clip_vit_b32", "clip_rn50"])
@pytest.mark.parametrize("method", ["attr_vr", "dvp_cls", "dvp_cse", "dga", "rvp", "zs_lp"])
def test_sixteen_images_a_class_with_every_method_of_texts(model, method):
    configs = PAPER.parent
    files = [configs / "few_shot" / f"{model}.yaml", configs / "methods" / f"{method}.yaml"]
    config, _ = parse("a test", arguments=[f"--config={file}" for file in files])
    assert config.data.shots == 16 and config.source.name.startswith("open_clip:")
    if method == "zs_lp":
        assert config.prompt.kind == "none"
        return
    assert config.prompt.kind == ("dga" if method == "dga" else "padding")
    assert config.prompt.image_size == config.data.cache_side == 192
    assert config.train.augment == "random_resized_crop"
    assert config.prompt.resize == "crop" and config.prompt.views == (3 if "dvp" in method else 1)
    assert (config.optim.name, config.optim.lr, config.optim.schedule) == ("sgd", 40.0, "cosine")
    assert (config.train.epochs, config.train.batch_size) == (200, 64)
