"""An epoch by phase: the bare network's floor, ours with exact and with running counts, and the textbook's."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from textbook import TextbookEpoch
from torch import Tensor

from clipvp.data.batches import Batches, epoch_order
from clipvp.data.sets import ImageTensors
from clipvp.mappings.statistic import Counts
from clipvp.training.checkpoint import Checkpoints
from clipvp.training.cores import CoreBatches

from .measure import Phases, alternate, now
from .setting import Setting
from .steps import Bare

PHASES = ("counting", "training", "scoring", "waiting for data", "mapping", "everything else")
_FLOOR_BATCHES = 2


class OurEpoch:
    """What ``clipvp.fit`` does in an epoch, one a call, with the test set instead of the validation set.

    Args:
        setting: What is measured.
        tensors: Decoded train and test images.
        statistics: exact or running.

    Attributes:
        counts: Of the last epoch.
        phases: Seconds by phase.
        core: Seconds to build the kept core, and its bytes an image; None where none is kept.
    """

    def __init__(self, setting: Setting, tensors: dict[str, ImageTensors], statistics: str):
        self.phases = Phases(setting.device)
        classifier = setting.classifier(statistics=statistics)
        data = {
            split: Batches(tensors[name], setting.accelerator)
            for split, name in (("train", "train"), ("val", "test"))
        }
        self.core, start = None, now(setting.device)
        if setting.config.keep_core:
            data = setting.with_cores(classifier, data)
        if isinstance(kept := data["train"], CoreBatches):
            seconds = now(setting.device) - start
            self.core = {"seconds": seconds, "bytes_an_image": kept.depth.num_bytes}
        for batches in data.values():
            batches.take = self._clocked(batches.take)
        self.trainer = setting.trainer(classifier, data)
        self.checkpoints = Checkpoints(setting.folder / statistics, keep=2)
        fit = classifier.mapping.fit

        def clocked_fit(counts: Counts) -> None:
            with self.phases("mapping"):
                self.counts = counts
                fit(counts)

        classifier.mapping.fit = clocked_fit

    def _clocked(self, take: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that tells the phases how long it keeps the loop waiting."""

        def clocked(*args: Any) -> Any:
            with self.phases("waiting for data", wait=False):
                return take(*args)

        return clocked

    @property
    def delta(self) -> Tensor:
        return self.trainer.classifier.prompt.delta

    def epoch(self) -> None:
        trainer, state = self.trainer, self.trainer.state
        with self.phases("everything else"):
            with self.phases("counting"):
                state.row = {"mapping_changed": trainer.refresh_mapping("")}
            with self.phases("training"):
                state.row |= trainer.train_epoch("")
            with self.phases("scoring"):
                trainer.keep_best(trainer.score("val", ""))
            trainer.end_epoch()
            self.checkpoints.save(state.epoch, trainer.tensors(), asdict(state))


class Floor:
    """The bare network's time for an epoch, from a few batches of each kind."""

    def __init__(self, setting: Setting, num_train: int, num_test: int):
        self.bare = Bare(setting.source, setting.config.batch_size, setting.config.compile)
        self.batch_size, self.sizes, self.device = (
            setting.config.batch_size,
            (num_train, num_test),
            setting.device,
        )
        self.laps: list[dict[str, float]] = []

    def run(self) -> None:
        start = now(self.device)
        for _ in range(_FLOOR_BATCHES):
            self.bare.forward()
        middle = now(self.device)
        for _ in range(_FLOOR_BATCHES):
            self.bare.step()
        end = now(self.device)
        images = _FLOOR_BATCHES * self.batch_size
        forward, step = (middle - start) / images, (end - middle) / images
        train, test = self.sizes
        self.laps.append({"counting": train * forward, "training": train * step, "scoring": test * forward})


class SideBySide:
    """The exact epoch and the textbook's, each round from the same prompt and in the same order of the images.

    Attributes:
        different: For each round, how many training images the two counted in other cells.
        apart: For each round, how far their prompts are apart at its end, as a share of how far they moved. Adam
            makes rounding visible: its first step is as long for a gradient of 1e-7 as for one of 1.
    """

    def __init__(self, exact: OurEpoch, textbook: TextbookEpoch):
        self.exact, self.textbook = exact, textbook
        self.different: list[int] = []
        self.apart: list[float] = []

    def begin(self) -> None:
        """Begin a round; the last one must have been compared."""
        state, train = self.exact.trainer.state, self.exact.trainer.data["train"]
        self.order = epoch_order(len(train), 0, state.epoch).tolist()
        self.start = self.exact.delta.detach().clone()
        with torch.no_grad():
            self.textbook.delta.copy_(self.start)

    def run_textbook(self) -> None:
        self.textbook.epoch(self.order)

    def compare(self) -> None:
        counts = self.exact.counts.rows(torch.arange(len(self.textbook.counts)))
        self.different.append(int((counts - self.textbook.counts).abs().sum()) // 2)
        ours, theirs = self.exact.delta.detach(), self.textbook.delta.detach()
        moved = (theirs - self.start).abs().mean()
        self.apart.append(float((ours - theirs).abs().mean() / moved))


def measure_epoch(setting: Setting) -> dict[str, Any]:
    """Return seconds by phase, the textbook's time over ours, and whether both count the same."""
    config, task = setting.config, setting.task
    resize = setting.classifier().resize
    tensors = {split: task.tensors(split, resize, progress=False) for split in ("train", "test")}
    exact, running = (OurEpoch(setting, tensors, statistics) for statistics in ("exact", "running"))
    prompt, lr = exact.trainer.classifier.prompt, exact.trainer.config.optim.lr
    how = (config.batch_size, config.precision, config.workers, lr)
    phases = Phases(setting.device)
    textbook = TextbookEpoch(setting.load_source("fp32"), task, prompt, resize, *how, phases)
    both, floor = SideBySide(exact, textbook), Floor(setting, len(task.train), len(task.test))
    floor.run()
    floor.laps.clear()
    running.epoch()  # untimed: its counts come from the epoch before
    running.phases.lap()
    laps: dict[str, list[dict[str, float]]] = {"exact": [], "running": [], "textbook": []}

    def timed(name: str, epoch: Callable[[], None], phases: Phases) -> Callable[[], None]:
        def run() -> None:
            epoch()
            laps[name].append(phases.lap())

        return run

    times = alternate(
        {
            "floor": floor.run,
            "exact": timed("exact", exact.epoch, exact.phases),
            "textbook": timed("textbook", both.run_textbook, textbook.phases),
            "running": timed("running", running.epoch, running.phases),
        },
        setting.device,
        config.seconds,
        config.rounds,
        warm_up=False,
        before_round=both.begin,
        after_round=both.compare,
    )
    laps = {"floor": floor.laps, **laps}
    seconds = {
        name: {phase: statistics.median(lap.get(phase, 0.0) for lap in each) for phase in PHASES}
        for name, each in laps.items()
    }
    total = {name: times.median(name) for name in ("exact", "running", "textbook")}
    total["floor"] = sum(seconds["floor"].values())
    return {
        "textbook_over_exact": times.ratio("textbook", "exact"),
        "textbook_over_running": times.ratio("textbook", "running"),
        "counts_equal": not any(both.different),
        "epoch": {
            "images": {"train": len(task.train), "scored": len(task.test)},
            "rounds": times.rounds,
            "core": exact.core,
            "seconds_by_phase": seconds,
            "seconds": total,
            "exact_over_floor": total["exact"] / total["floor"],
            "running_over_floor": total["running"] / total["floor"],
            "images_counted_differently": both.different,
            "prompts_apart": both.apart,
            "labels_seen": int((exact.counts.by_label() > 0).sum()),
            "spread": {name: times.spread("textbook", name) for name in ("exact", "running")},
        },
    }
