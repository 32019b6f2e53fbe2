"""What the parts measure: the frozen source, classifiers around it, their loop, and a task of JPEG files."""

from __future__ import annotations

import copy
import tempfile
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image

from clipvp.build import source_from_config, text_label_space
from clipvp.config.schema import (
    DataConfig,
    MappingConfig,
    OptimConfig,
    PromptConfig,
    RunConfig,
    SourceConfig,
    TrainConfig,
)
from clipvp.cpu import keep_freed_memory, prepare_cpu
from clipvp.data.batches import Batches
from clipvp.data.sets import ImageTensors
from clipvp.data.task import Task, load_task
from clipvp.mappings.frequency import FrequencyMapping
from clipvp.mappings.statistic import Counts
from clipvp.model import PromptedClassifier
from clipvp.progress import Progress
from clipvp.prompts.build import build_prompt
from clipvp.registry import UserError
from clipvp.sources.base import Source
from clipvp.training.cores import with_cores
from clipvp.training.step import Trainer

from .config import BenchmarkConfig
from .random_weights import random_source


class Setting:
    """The objects that a config describes; used in a ``with``, which removes the files that were made.

    Attributes:
        folder: For files, removed at the end.
        accelerator: One process.
        device: Where everything runs.
    """

    def __init__(self, config: BenchmarkConfig):
        prepare_cpu()
        keep_freed_memory(config.keep_memory)
        self.config = config
        self.accelerator = Accelerator(cpu=config.device == "cpu")
        if self.accelerator.num_processes > 1:
            raise UserError("recipes/benchmark.py runs on one process; start it with python")
        self.device = self.accelerator.device
        if config.device == "cuda" and self.device.type != "cuda":
            raise UserError("device: torch sees no cuda device here; give cpu")
        self._files = tempfile.TemporaryDirectory(prefix="clipvp-benchmark-")
        self.folder = Path(self._files.name)

    def __enter__(self) -> Setting:
        return self

    def __exit__(self, *error: object) -> None:
        self._files.cleanup()

    def load_source(self, precision: str | None = None) -> Source:
        """Return the config's source, loaded anew, in its precision or another."""
        config = self.config
        wanted = SourceConfig(config.source, config.canvas, precision or config.precision)
        if config.random_weights:
            source = random_source(wanted, self.device)
        else:
            labels = partial(text_label_space, MappingConfig(), self.class_names)
            source = source_from_config(wanted, labels, self.device)
        return source

    @cached_property
    def source(self) -> Source:
        return self.load_source()

    @cached_property
    def whole_source(self) -> Source:
        """The source for whole canvases, compiled if that is asked for: of the same network, which stays as it is."""
        if not self.config.compile:
            return self.source
        source = copy.copy(self.source)
        source.compile_network()
        return source

    def classifier(
        self,
        share_border: bool = True,
        statistics: str = "exact",
        image_size: int | None = None,
        source: Source | None = None,
        prompt: PromptConfig | None = None,
    ) -> PromptedClassifier:
        """Return an untrained classifier with ILM and a prompt and a mapping of its own, around the config's source
        or another.

        Its mapping is fitted to no counts at all, so that it can train without a counting pass before.
        """
        shares = share_border and self.config.prompt == "padding"
        source = source or (self.source if shares else self.whole_source)
        size = {"image_size": image_size or self.config.image_size}
        if self.config.prompt == "border":
            size = {} if self.config.width is None else {"width": self.config.width}
        prompt = prompt or PromptConfig(kind=self.config.prompt, **size)
        config = MappingConfig(kind="frequency", statistics=statistics)
        mapping = FrequencyMapping.from_config(config, source, self.class_names, 0)
        mapping.fit(Counts(len(source.labels), len(self.class_names)))
        visual = build_prompt(prompt, source)
        classifier = PromptedClassifier(visual, source, mapping, self.class_names, share_border)
        return classifier.to(self.device)

    def trainer(self, classifier: PromptedClassifier, data: dict[str, Batches]) -> Trainer:
        """Return the loop of a run around a classifier, with Adam at one rate."""
        config = RunConfig(
            optim=OptimConfig(schedule="constant"), train=TrainConfig(batch_size=self.config.batch_size)
        )
        return Trainer(classifier, data, config, self.accelerator, Progress(False))

    def with_cores(self, classifier: PromptedClassifier, data: dict[str, Batches]) -> dict[str, Batches]:
        """Return batches with what ``train.keep_core: memory`` keeps of their core; as they are where it keeps none."""
        task = SimpleNamespace(images=lambda split: None, cache_dir=None)  # neither is used in memory
        config = TrainConfig(keep_core="memory")
        return with_cores(classifier, data, task, "memory", config, self.accelerator, Progress(False))

    def noise(self, count: int, size: tuple[int, int]) -> Batches:
        """Return images of noise (count, 3, h, w) with labels at random, laid out as decoded images are."""
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (count, *size, 3), generator=generator, dtype=torch.uint8)
        labels = torch.randint(0, len(self.class_names), (count,), generator=generator)
        return Batches(ImageTensors(pixels.permute(0, 3, 1, 2), labels), self.accelerator)

    @property
    def class_names(self) -> list[str]:
        if self.config.data is None:
            return [f"class{index:03}" for index in range(self.config.classes)]
        return self.task.class_names

    @cached_property
    def task(self) -> Task:
        """The config's task, or one of JPEG files made on the spot; nothing validates, the test set is scored."""
        config = self.config
        name = config.data or str(self._write_pictures())
        limits = {"max_train": config.images, "max_test": max(config.images // 5, config.classes)}
        return load_task(DataConfig(name, val=0.0, cache_dir=str(self.folder / "cache"), **limits))

    def _write_pictures(self) -> Path:
        """Write smooth random pictures, of the size of the prompt's images, as SPLIT/CLASS/INDEX.jpg."""
        config, generator = self.config, np.random.default_rng(0)
        size = (config.image_size, config.image_size)
        for split, count in (("train", config.images), ("test", max(config.images // 5, config.classes))):
            for index in range(count):
                small = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
                name = self.class_names[index % config.classes]
                path = self.folder / "pictures" / split / name / f"{index}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path, quality=90)
        return self.folder / "pictures"
