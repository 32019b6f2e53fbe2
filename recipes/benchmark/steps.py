"""A training step and a counting pass against the bare frozen network; their memory; several architectures."""

from __future__ import annotations

import mmap
import statistics
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from clipvp.config.schema import SourceConfig
from clipvp.model import PromptedClassifier
from clipvp.sources.base import DTYPES, Source

from .measure import alternate, peak_memory
from .random_weights import random_source
from .setting import Setting


class Bare:
    """The floor: the frozen network alone, channels last, on a batch of the canvas's size that is there already.

    Args:
        source: Whose network.
        batch_size: Images in the batch.
        compiled: Compile it.
    """

    def __init__(self, source: Source, batch_size: int, compiled: bool):
        self.source = source
        self.network = torch.compile(source.network, dynamic=False) if compiled else source.network
        self.size = (batch_size, 3, *source.canvas)

    @cached_property
    def pixels(self) -> torch.Tensor:
        pixels = torch.randn(self.size, generator=torch.Generator().manual_seed(0))
        return pixels.to(self.source.mean.device, memory_format=torch.channels_last)

    def _run(self, pixels: torch.Tensor) -> torch.Tensor:
        dtype = DTYPES[self.source.precision]
        with torch.autocast(pixels.device.type, dtype, enabled=dtype != torch.float32):
            return self.network(pixels)

    @torch.no_grad()
    def forward(self) -> None:
        self._run(self.pixels)

    def step(self) -> None:
        """Take the output and the gradient of its sum to the pixels."""
        pixels = self.pixels.detach().requires_grad_()
        self._run(pixels).float().sum().backward()


class Steps:
    """The loop of a run over as many noise images as make whole steps."""

    def __init__(self, setting: Setting, classifier: PromptedClassifier, steps: int):
        data = setting.noise(steps * setting.config.batch_size, classifier.prompt.image_size)
        self.trainer = setting.trainer(classifier, {"train": data})

    def train(self) -> None:
        self.trainer.train_epoch("")
        self.trainer.end_epoch()

    def count(self) -> None:
        self.trainer.refresh_mapping("")


def steps_on(device: torch.device) -> int:
    """Return how many steps are timed at once: what an epoch costs once, such as waiting for the device at its end,
    is spread over them."""
    return 1 if device.type == "cpu" else 20


def classifiers(setting: Setting) -> dict[str, PromptedClassifier]:
    """Return the classifiers that are held against the bare network, the default one first."""
    plain = setting.classifier(share_border=False)
    if plain.prompt.surroundings() is None:
        return {"plain": plain}
    return {"shared": setting.classifier(), "plain": plain}


def measure_step(setting: Setting) -> dict[str, Any]:
    """Return a training step and a counting pass, with and without sharing, over the bare network's."""
    config, device = setting.config, setting.device
    steps = steps_on(device)
    bare = Bare(setting.source, config.batch_size, config.compile)
    flops = _flops(Bare(setting.source, config.batch_size, compiled=False).step)
    candidates = {"bare step": _repeat(bare.step, steps), "bare forward": _repeat(bare.forward, steps)}
    ways = {name: Steps(setting, classifier, steps) for name, classifier in classifiers(setting).items()}
    for name, way in ways.items():
        candidates |= {f"{name} step": way.train, f"{name} count": way.count}
    matmul, matmul_flops = _matmul(config.precision, device)
    copy, copy_bytes = _copy(device)
    timed = {
        **candidates,
        "matmul": matmul,
        "matmul, one thread": partial(_on_one_thread, matmul),
        "copy": copy,
    }
    times = alternate(timed, device, config.seconds, config.rounds, settle=device.type == "cpu")
    default = next(iter(ways))
    images = steps * config.batch_size
    found = {
        "step_over_bare": times.ratio(f"{default} step", "bare step"),
        "step_over_bare_without_sharing": times.ratio("plain step", "bare step"),
        "count_over_bare": times.ratio(f"{default} count", "bare forward"),
        "count_over_bare_without_sharing": times.ratio("plain count", "bare forward"),
        "examples_per_second": images / times.median(f"{default} step"),
    }
    floor = {"step": "bare step", "count": "bare forward"}
    rows = {
        name: {
            "seconds": times.median(name) / steps,
            "images_per_second": images / times.median(name),
            "over_bare": times.ratio(name, floor.get(name.split()[1], name)),
            "spread": times.spread(name, floor.get(name.split()[1], name)),
        }
        for name in candidates
    }
    speed, ceiling = steps * flops / times.median("bare step"), matmul_flops / times.median("matmul")
    arithmetic = {"bare_flops_per_second": speed, "matmul_flops_per_second": ceiling}
    arithmetic["matmul_one_thread_over_all"] = times.ratio("matmul, one thread", "matmul")
    arithmetic["copied_bytes_per_second"] = copy_bytes / times.median("copy")
    share = {"share_of_matmul": speed / ceiling}
    return {**found, "step": {"rounds": times.rounds, "rows": rows, **arithmetic, **share}}


def measure_memory(setting: Setting) -> dict[str, Any]:
    """Return the peak of a step beyond what is in use, weights and decoded images, over the bare step's."""
    config, device = setting.config, setting.device
    bare = Bare(setting.source, config.batch_size, config.compile)

    def bare_step() -> None:  # its pixels are part of it, as ours are of ours
        bare.step()
        del bare.pixels

    ours = {name: Steps(setting, each, 1).train for name, each in classifiers(setting).items()}
    runs = {"bare": bare_step, **ours}
    for run in runs.values():
        run()
    peaks = {name: [peak_memory(run, device) for _ in range(config.rounds)] for name, run in runs.items()}
    if None in peaks["bare"]:
        return {"peak_memory_over_bare": None, "memory": None}
    found = {name: statistics.median(values) for name, values in peaks.items()}
    default = "shared" if "shared" in found else "plain"
    return {
        "peak_memory_over_bare": found[default] / found["bare"],
        "peak_memory_over_bare_without_sharing": found["plain"] / found["bare"],
        "memory": {"bytes": found},
    }


def measure_architectures(setting: Setting) -> Iterator[dict[str, Any]]:
    """Yield, after each architecture, a step over the bare one's at several image sizes."""
    found = {}
    for name in setting.config.architectures:
        found[name] = _architecture(setting, name)
        ratios = ", ".join(f"{size}: {ratio:.2f}" for size, ratio in found[name]["over_bare"].items())
        print(f"  {name}, {ratios}", flush=True)
        yield {"architectures": found}


def _architecture(setting: Setting, name: str) -> dict[str, Any]:
    config, device = setting.config, setting.device
    source = random_source(SourceConfig(f"timm:{name}", config.canvas, config.precision), device)
    steps = steps_on(device)
    sizes = [size for size in config.image_sizes if size <= min(source.canvas)]
    ways = {"without": Steps(setting, setting.classifier(False, image_size=sizes[0], source=source), steps)}
    ways |= {
        str(size): Steps(setting, setting.classifier(image_size=size, source=source), steps) for size in sizes
    }
    bare = Bare(source, config.batch_size, compiled=False)
    candidates = {"bare": _repeat(bare.step, steps), **{way: each.train for way, each in ways.items()}}
    times = alternate(candidates, device, config.seconds, config.rounds, settle=device.type == "cpu")
    return {
        "bare_seconds": times.median("bare") / steps,
        "over_bare_without_sharing": times.ratio("without", "bare"),
        "over_bare": {str(size): times.ratio(str(size), "bare") for size in sizes},
        "rounds": times.rounds,
    }


def _repeat(run: Callable[[], None], steps: int) -> Callable[[], None]:
    def repeated() -> None:
        for _ in range(steps):
            run()

    return repeated


def _flops(step: Callable[[], None]) -> int:
    """Return the floating-point operations of a step, a multiplication and an addition counted as two."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def _matmul(precision: str, device: torch.device) -> tuple[Callable[[], Any], int]:
    """Return a large product of matrices, the ceiling of what the device computes, and its operations."""
    side = 1024 if device.type == "cpu" else 8192
    kind = torch.float32 if precision == "fp32" or device.type == "cpu" else DTYPES[precision]
    matrix = torch.randn(side, side, device=device).to(kind)
    return lambda: matrix @ matrix, 2 * side**3


def _on_one_thread(run: Callable[[], Any]) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run()
    finally:
        torch.set_num_threads(threads)


def _copy(device: torch.device) -> tuple[Callable[[], Any], int]:
    """Return a copy in memory that no cache holds, and the bytes that it reads and writes."""
    size = 2**29
    if device.type == "cpu":  # not from the memory that the process keeps, whose peak is measured later
        numbers, target = (torch.frombuffer(mmap.mmap(-1, size), dtype=torch.float32) for _ in range(2))
    else:
        numbers = torch.ones(size // 4, device=device)
        target = torch.empty_like(numbers)
    numbers.fill_(1)  # pages that nothing was written to are one page
    return lambda: target.copy_(numbers), 2 * size
