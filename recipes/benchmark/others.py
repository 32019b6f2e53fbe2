"""What needs no pass through the network: the data path, text embeddings and the assignment."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import torch
from textbook import Files, greedy_loop

from clipvp.build import source_from_config, text_label_space
from clipvp.config.schema import MappingConfig, SourceConfig
from clipvp.data.batches import Batches
from clipvp.mappings.assignment import assign_greedy
from clipvp.mappings.statistic import Counts

from .measure import alternate
from .setting import Setting
from .texts import text_cache

# ImageNet-1k's labels, and 81 templates times the classes of Food101 and of SUN397.
SIZES = ((1000, 10), (1000, 102), (1000, 397), (8181, 101), (32157, 397))
_IMAGES_A_CLASS = 40


def measure_data(setting: Setting) -> dict[str, Any]:
    """Return images a second of each stretch of the way from files to batches, and of the textbook's DataLoader."""
    config, device, images = setting.config, setting.device, setting.task.train
    resize = setting.classifier().resize
    fresh = (setting.folder / f"decoded-{index}" for index in itertools.count())
    filled = next(fresh)
    batches = Batches(images.tensors(resize, cache_dir=filled, progress=False), setting.accelerator)
    files = Files(images, resize)

    def load() -> None:
        loader = torch.utils.data.DataLoader(files, config.batch_size, num_workers=config.workers)
        for pixels, labels in loader:
            pixels.to(device), labels.to(device)

    def take() -> None:
        for _ in batches.local_batches(config.batch_size):
            pass

    times = alternate(
        {
            "decode, first run": lambda: images.tensors(resize, cache_dir=next(fresh), progress=False),
            "read decoded, later runs": lambda: images.tensors(resize, cache_dir=filled, progress=False),
            "batches, each pass": take,
            "textbook DataLoader, each pass": load,
        },
        device,
        config.seconds,
        config.rounds,
    )
    speeds = {name: len(images) / times.median(name) for name in times.seconds}
    return {"data": {"images": len(images), "images_per_second": speeds, "rounds": times.rounds}}


def measure_text(setting: Setting) -> dict[str, Any]:
    """Return the seconds until a CLIP is loaded, its texts encoded or their embeddings read.

    The config's source where it is one, else ``offline:lite0-minilm``.
    """
    config = setting.config
    name = (
        config.source
        if not config.random_weights and setting.source.labels.is_text
        else "offline:lite0-minilm"
    )
    fresh = (setting.folder / f"text-{index}" for index in itertools.count())
    filled = next(fresh)
    labels = text_label_space(MappingConfig(), setting.class_names)

    def load(cache: Path) -> None:
        with text_cache(cache):
            source_from_config(SourceConfig(name, config.canvas), lambda: labels, setting.device)

    runs = {"cold": lambda: load(next(fresh)), "cached": lambda: load(filled)}
    load(filled)
    times = alternate(runs, setting.device, config.seconds, config.rounds, warm_up=False)
    seconds = {state: times.median(state) for state in runs}
    return {"text": {"source": name, "texts": len(labels), "seconds": seconds, "rounds": times.rounds}}


def measure_assignment(setting: Setting) -> dict[str, Any]:
    """Return the seconds of greedy assignment by size ``SxT``, with the counts of 40 images a class."""
    found: dict[str, float] = {}
    loops: dict[str, float] = {}
    budget = setting.config.seconds / len(SIZES)
    for num_source, num_target in SIZES:
        generator = torch.Generator().manual_seed(0)
        targets = torch.arange(num_target).repeat(_IMAGES_A_CLASS)
        # The square of a uniform number: some labels are seen often, as in a real model.
        labels = (torch.rand(len(targets), generator=generator) ** 2 * num_source).long()
        counts = torch.zeros(num_source, num_target, dtype=torch.int64)
        counts.view(-1).index_add_(0, labels * num_target + targets, torch.ones_like(targets))
        sums = Counts.from_matrix(counts)
        times = alternate(
            {"ours": lambda sums=sums: assign_greedy(sums)},
            torch.device("cpu"),
            budget,
            setting.config.rounds,
        )
        size = f"{num_source}x{num_target}"
        found[size] = times.median("ours")
        start = time.perf_counter()
        expected = greedy_loop(counts)
        loops[size] = time.perf_counter() - start
        if not torch.equal(assign_greedy(sums), expected):
            raise AssertionError(f"the assignment at {size} differs from the loop's")
    return {"assign_seconds": found, "assignment": {"loop_seconds": loops}}
