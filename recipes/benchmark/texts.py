"""Large label spaces of a CLIP: many texts encoded, kept on disk, read again, and pooled for a batch of images.

As large as SUN397 with 40 descriptions a class (15,880 texts) and ImageNet with the paper's 81 templates (81,000).
Names and descriptions are made of random words.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from clipvp.build import source_from_config, text_label_space
from clipvp.config.schema import MappingConfig, SourceConfig
from clipvp.mappings.text_counts import TextCountsConfig
from clipvp.mappings.text_pool import TextPoolConfig
from clipvp.registry import MAPPINGS
from clipvp.sources.base import Source
from clipvp.sources.load import load_source

from .measure import alternate, peak_memory
from .setting import Setting

SOURCE = "offline:lite0-minilm"
# Classes and descriptions of each; None for the paper's 81 templates.
SPACES = {"SUN397, 40 descriptions a class": (397, 40), "ImageNet, 81 templates a class": (1000, None)}
_WORDS = 15  # of a description, after the class name


def measure_text_bank(setting: Setting) -> dict[str, Any]:
    """Return time and memory of each label space: encoding, reading, logits, pooling and counting."""
    words = np.array(" ".join(load_source("offline:lite0", canvas=64).labels.names).split())
    generator = np.random.default_rng(0)

    def sentence(count: int) -> str:
        return " ".join(generator.choice(words, count))

    found = {}
    for title, (classes, descriptions) in SPACES.items():
        names = [f"{sentence(1)} {index}" for index in range(classes)]
        texts = {"templates": "paper"}
        if descriptions:
            path = setting.folder / "descriptions.json"
            bank = {name: [f"{name}: {sentence(_WORDS)}." for _ in range(descriptions)] for name in names}
            path.write_text(json.dumps(bank))
            texts = {"texts": str(path)}
        found[title] = row = _measure(setting, names, texts)
        print(f"  {title}: encoded in {row['seconds']['encoded']:.0f} s", flush=True)
    return {"text_bank": {"source": SOURCE, "images": setting.config.batch_size, "spaces": found}}


def _measure(setting: Setting, names: list[str], texts: dict[str, Any]) -> dict[str, Any]:
    config = setting.config
    labels = text_label_space(MappingConfig(**texts), names)
    sources: list[Source] = []

    def load() -> None:
        sources[:] = [source_from_config(SourceConfig(SOURCE, 64), lambda: labels, setting.device)]

    def timed(run: Callable[[], Any]) -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    with text_cache(setting.folder / "texts"):
        # What the CLIP itself keeps is there before the clock starts.
        source_from_config(
            SourceConfig(SOURCE, 64), lambda: text_label_space(MappingConfig("identity"), ["x"])
        )
        memory: list[int | None] = []
        seconds = {"encoded": timed(lambda: memory.append(peak_memory(load, setting.device)))}
        seconds["read from disk"] = timed(load)
    (source,) = sources
    targets = torch.arange(config.batch_size, device=setting.device) % len(names)
    features = F.normalize(torch.randn(config.batch_size, source.num_features, device=setting.device), dim=1)
    logits = source.score(features)
    kinds = {
        "mean": TextPoolConfig("text_pool", pool="mean", **texts),
        "top 3": TextPoolConfig("text_pool", pool="top_k_mean", top_k=3, **texts),
        "text_counts": TextCountsConfig("text_counts", **texts),
    }
    mappings = {
        name: MAPPINGS.get(kind.kind).from_config(kind, source, names, 0).to(setting.device)
        for name, kind in kinds.items()
    }
    statistic = mappings["text_counts"].statistic()
    with torch.no_grad():
        times = alternate(
            {
                "logits": lambda: source.score(features),
                **{name: lambda mapping=mapping: mapping(logits) for name, mapping in mappings.items()},
                "counting": lambda: statistic.add(logits, targets),
            },
            setting.device,
            config.seconds / 10,
            config.rounds,
        )
    return {
        "texts": len(labels),
        "seconds": seconds,
        "peak_bytes": memory[0],
        "embedding_bytes": len(labels) * source.num_features * 4,
        "batch_seconds": {name: times.median(name) for name in times.seconds},
        "rounds": times.rounds,
    }


@contextmanager
def text_cache(folder: Path) -> Iterator[None]:
    """Keep what is cached in a folder of its own."""
    before = os.environ.get("CLIPVP_CACHE")
    os.environ["CLIPVP_CACHE"] = str(folder)
    try:
        yield
    finally:
        del os.environ["CLIPVP_CACHE"]
        if before is not None:
            os.environ["CLIPVP_CACHE"] = before
