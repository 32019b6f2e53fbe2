"""Small real models and tasks for all tests; nothing is asked from a network."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # small models, and a worker of pytest for each core
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import numpy as np
import pytest
import torch
from hypothesis import settings

from clipvp.cpu import keep_freed_memory

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))  # the package of recipes/benchmark.py

settings.register_profile("default", deadline=None)
settings.register_profile("many", deadline=None, max_examples=1000)
settings.load_profile("default")


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=20, help="how often tests/test_kill.py kills its run (20)")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Keep decoded images and text embeddings of the tests out of the user's cache."""
    os.environ["CLIPVP_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _cpu():
    """Undo ``prepare_cpu``: other tests draw numbers of every size, and look at memory."""
    yield
    torch.set_flush_denormal(False)
    keep_freed_memory(False)


@pytest.fixture(scope="session")
def tiny_timm(tmp_path_factory) -> str:
    """The name of a small, randomly initialised timm classifier of 20 labels in a local folder."""
    import timm
    from timm.models import save_for_hf

    folder = tmp_path_factory.mktemp("tiny_timm")
    torch.manual_seed(0)
    model = timm.create_model("test_efficientnet", num_classes=20)
    save_for_hf(model, folder, safe_serialization=True, model_args={"num_classes": 20})
    return f"timm:local-dir:{folder}"


@pytest.fixture(scope="session")
def tiny_timm_vit(tmp_path_factory) -> str:
    """The name of a timm vision transformer of 20 labels, whose position embedding knows its canvas."""
    import timm
    from timm.models import save_for_hf

    folder = tmp_path_factory.mktemp("tiny_timm_vit")
    torch.manual_seed(1)
    model = timm.create_model("test_vit", num_classes=20)
    save_for_hf(model, folder, safe_serialization=True, model_args={"num_classes": 20})
    return f"timm:local-dir:{folder}"


@pytest.fixture(scope="session")
def tiny_hf(tmp_path_factory) -> str:
    """The name of a small transformers ResNet of 7 labels in a local folder."""
    from transformers import ConvNextImageProcessor, ResNetConfig, ResNetForImageClassification

    folder = tmp_path_factory.mktemp("tiny_hf")
    torch.manual_seed(2)
    names = dict(enumerate(["cat, feline", "dog", "crane, bird", "crane, machine", "hen", "fox", "cow"]))
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=7, id2label=names)
    model = ResNetForImageClassification(config).eval()
    for module in model.modules():  # statistics as training leaves them
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
    model.save_pretrained(folder)
    ConvNextImageProcessor(size={"shortest_edge": 64}, crop_pct=0.875).save_pretrained(folder)
    return f"hf:{folder}"


@pytest.fixture(scope="session")
def tiny_hf_vit(tmp_path_factory) -> str:
    """The name of a small transformers vision transformer of 7 labels in a local folder."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    folder = tmp_path_factory.mktemp("tiny_hf_vit")
    torch.manual_seed(3)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=32,
        patch_size=8,
        num_labels=7,
    )
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return f"hf:{folder}"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A function from a kind of tests/tiny_models.py to the name of such a model in a local folder, made once."""
    import tiny_models

    made = {}

    def name(kind: str, seed: int = 0) -> str:
        if (kind, seed) not in made:
            made[kind, seed] = tiny_models.make(kind, tmp_path_factory.mktemp(kind), seed)
        return made[kind, seed]

    return name


def photo(height: int, width: int, seed: int = 0):
    """Return a smooth colour picture, as a PIL image."""
    from PIL import Image

    small = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def closed_source(network, num_labels: int, canvas=(4, 4), precision: str = "fp32"):
    """Return a source around any network from normalised pixels to logits."""
    from clipvp.images import Resize
    from clipvp.labels.space import LabelSpace
    from clipvp.sources.base import Preprocessing, Source

    labels = LabelSpace(tuple(f"label {i}" for i in range(num_labels)))
    preprocessing = Preprocessing(Resize(canvas), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    return Source(network, labels, preprocessing, "test", precision=precision)


def coloured_images(count: int, num_classes: int, size: int = 12, seed: int = 0):
    """Return (image, label) pairs: noise on a colour that tells the class."""
    generator = np.random.default_rng(seed)
    pairs = []
    for index in range(count):
        label = index % num_classes
        base = np.array([(label * 53) % 256, (label * 101 + 40) % 256, (label * 197 + 90) % 256])
        noise = generator.integers(-40, 40, (size, size, 3))
        pairs.append((np.clip(base + noise, 0, 255).astype(np.uint8), label))
    return pairs


def write_image_folder(folder: Path, counts: dict[str, int], num_classes: int) -> Path:
    """Write coloured images as ``split/classN/index.png`` and return the folder."""
    from PIL import Image

    for seed, (split, count) in enumerate(counts.items()):
        for index, (image, label) in enumerate(coloured_images(count, num_classes, seed=seed)):
            path = folder / split / f"class{label}" / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return folder


def small_task():
    """Return a task of 3 classes: 60 training, 18 validation and 25 test images."""
    from clipvp import Task

    return Task.from_dataset(
        coloured_images(60, 3),
        coloured_images(25, 3, seed=1),
        val=coloured_images(18, 3, seed=2),
        class_names=["red thing", "green thing", "blue thing"],
    )


@pytest.fixture
def tiny_task():
    return small_task()


def small_config(source: str, output: Path, **sections):
    """Return the config of a small run; sections are merged into it."""
    from clipvp.config.values import from_dict

    values = {
        "source": {"name": source, "canvas": 32},
        "prompt": {"kind": "padding", "image_size": 16},
        "optim": {"lr": 0.1, "schedule": "constant"},
        "train": {"epochs": 3, "batch_size": 16, "progress": False},
        "seed": 1,
        "output": str(output),
    }
    for key, value in sections.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    return from_dict(values)


@pytest.fixture
def config(tiny_timm, tmp_path):
    """A function that makes a small run's config."""
    return partial(small_config, tiny_timm, output=tmp_path / "run")


def trained(config, task):
    """Return the classifier and the result of a run."""
    from clipvp import build_classifier, fit

    classifier = build_classifier(config, task)
    return classifier, fit(classifier, task, config)


def untimed(value):
    """Drop what differs between two equal runs: times, places, memory."""
    if isinstance(value, dict):
        dropped = ("seconds", "output", "peak_memory_bytes", "git_commit")
        return {key: untimed(inner) for key, inner in value.items() if key not in dropped}
    return [untimed(item) for item in value] if isinstance(value, list) else value


def left_by(folder: Path) -> tuple:
    """Return what a run computed: its prompt to the bit, its lines, its results."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    results = json.loads((folder / "results.json").read_text())
    del results["config"]
    return (folder / "prompt" / "model.safetensors").read_bytes(), untimed(rows), untimed(results)


@contextlib.contextmanager
def full_disk(size: int = 100):
    """The system refuses to write more than so many bytes to any file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
