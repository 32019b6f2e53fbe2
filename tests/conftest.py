"""Small real models and tasks for all tests; nothing is asked from a network."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Keep decoded images and text embeddings of the tests out of the user's cache."""
    os.environ["CLIPVP_CACHE"] = str(tmp_path_factory.mktemp("cache"))


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


@pytest.fixture
def tiny_task():
    """A task of 3 classes: 60 training, 18 validation and 25 test images."""
    from clipvp import Task

    return Task.from_dataset(
        coloured_images(60, 3),
        coloured_images(25, 3, seed=1),
        val=coloured_images(18, 3, seed=2),
        class_names=["red thing", "green thing", "blue thing"],
    )
