"""The steps of a run on one process of many, and everything that decides its future.

The order of the images depends on seed and epoch alone and the learning rate on the step alone, so that a run is
a function of its config, and a checkpoint between any two steps is enough to go on as if nothing had happened. A
step's parts are summed in one order, so that runs with as many parts a step, processes times gradient accumulation
steps, round alike where the source is frozen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from ..config.schema import RunConfig
from ..data.augment.basic import epoch_augmentation
from ..data.batches import Batches, epoch_order
from ..mappings.assignment import count_matrix
from ..model import PromptedClassifier
from ..progress import Progress
from ..registry import UserError
from ..scoring.scores import EvalResult, score
from .optim import build_optimizer, lr_at


@dataclass
class State:
    """Where a run stands, beside the tensors that train.

    Args:
        epoch: Epochs finished.
        step: Steps taken in the epoch that is under way.
        row: What is known of that epoch's line in the metrics.
        history: One row a finished epoch.
        best: Epoch and scores of the best validation so far.
        best_on_test: Epoch and scores of the best test, where every epoch is tested; it selects nothing.
        seconds: Seconds by phase before this process started.
    """

    epoch: int = 0
    step: int = 0
    row: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    best_on_test: dict[str, Any] | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def check(self, steps: int) -> None:
        """Raise ``ValueError`` where this is no state of a run with so many steps an epoch."""
        whole = type(self.epoch) is int and type(self.step) is int and 0 <= self.step <= steps
        rows = isinstance(self.history, list) and all(isinstance(row, dict) for row in self.history)
        if not (whole and rows and self.epoch == len(self.history) and isinstance(self.row, dict)):
            raise ValueError(f"epoch {self.epoch!r}, step {self.step!r} and its lines do not go together")
        for best in (self.best, self.best_on_test):
            if best is not None and not (isinstance(best, dict) and {"epoch", "acc1"} <= best.keys()):
                raise ValueError(f"{best!r} is no score of an epoch")
        if not isinstance(self.seconds, dict) or not all(
            isinstance(spent, (int, float)) for spent in self.seconds.values()
        ):
            raise ValueError("the seconds by phase are no numbers")


class Trainer:
    """The steps of ``fit``, on one process of many.

    Args:
        classifier: On the accelerator's device.
        data: Decoded splits by name; train and test, and val if there is one.
        config: The run.
        accelerator: Processes and device.
        progress: Bars and lines.
    """

    def __init__(
        self,
        classifier: PromptedClassifier,
        data: dict[str, Batches],
        config: RunConfig,
        accelerator: Accelerator,
        progress: Progress,
    ):
        self.classifier, self.data, self.config = classifier, data, config
        self.accelerator, self.progress = accelerator, progress
        self.parameters = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
        self.optimizer = build_optimizer(config.optim, self.parameters) if self.parameters else None
        self.statistics = _moving_statistics(classifier.source.network)
        self.state = State()
        self.best_state: dict[str, Tensor] = {}
        self.steps = -(-len(data["train"]) // config.train.batch_size)
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        parts = self.config.train.gradient_accumulation_steps
        # Of this process's parts of each step, summed over their images.
        self.losses = torch.zeros(parts, self.steps, device=self.accelerator.device)
        self.hits = torch.zeros((), dtype=torch.int64, device=self.accelerator.device)

    def score(self, split: str, phase: str) -> EvalResult:
        """Score one split with the classifier as it stands."""
        batches, size = self.data[split], self.config.train.batch_size
        watch = self.progress.watch(batches.mine(size), phase)
        return score(self.classifier, batches, size, self.accelerator, watch)

    @torch.no_grad()
    def refresh_mapping(self, phase: str) -> int:
        """Fit the mapping to new counts, summed over processes; return how many classes changed their label."""
        mapping, train = self.classifier.mapping, self.data["train"]
        counts = mapping.running_counts()
        if counts is None:
            self.classifier.eval()
            size = self.config.train.batch_size
            batches = self.progress.watch(train.mine(size), phase)(train.in_turn(size))
            pairs = ((self.classifier.source_logits(images), labels) for images, labels in batches)
            counts = count_matrix(pairs, mapping.num_source, mapping.num_target)
        before = mapping.source_index.clone()
        mapping.fit(self.accelerator.reduce(counts.to(self.accelerator.device), "sum"))
        return int((before != mapping.source_index).sum())

    def train_epoch(self, phase: str, after_step: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Take the steps that are left of the epoch under way; return its last lr, and loss and accuracy of all of it.

        Raises:
            UserError: The loss is no number.
        """
        train, config, state = self.data["train"], self.config, self.state
        batches = epoch_order(len(train), config.seed, state.epoch).split(config.train.batch_size)
        shares = [train.share(batch, config.train.gradient_accumulation_steps) for batch in batches]
        sizes = [sum(map(len, parts)) for parts in shares]
        augment = epoch_augmentation(config.train.augment, len(train), config.seed, state.epoch)
        seen = sum(sizes[: state.step])
        self.classifier.train()
        with self.progress.bar(sum(sizes), phase, done=seen) as bar:
            for step in range(state.step, len(batches)):
                gradients = [
                    self._gradient(part, augment, len(batches[step]), self.losses[place, step])
                    for place, part in enumerate(shares[step])
                ]
                self._update(gradients, self._lr(step))
                seen, state.step = seen + sizes[step], step + 1
                bar.advance(sizes[step], partial(_means, self.losses, self.hits, seen))
                after_step()
        losses = self.check_finite()
        hits = self.accelerator.reduce(self.hits, "sum")
        means = {"train_loss": float(losses.sum()) / len(train), "train_acc1": int(hits) / len(train)}
        return {"lr": self._lr(len(batches) - 1), **means}

    def _lr(self, step: int) -> float:
        """Return the learning rate of a step of the epoch under way."""
        step += self.state.epoch * self.steps
        return lr_at(self.config.optim, step, self.steps, self.config.train.epochs)

    def _gradient(
        self,
        part: Tensor,
        augment: Callable[[Tensor, Tensor], Tensor],
        global_batch: int,
        loss_place: Tensor,
    ) -> list[Tensor]:
        """Return what one part of a step adds to the gradient of each parameter; note its loss, hits and counts."""
        if not len(part):  # a last batch may have fewer images than there are processes and parts
            return [torch.zeros_like(parameter) for parameter in self.parameters]
        images, labels = self.data["train"].take(part, augment)
        source_logits = self.classifier.source_logits(images)
        logits = self.classifier.mapping(source_logits)
        loss = F.cross_entropy(logits, labels, reduction="sum")
        loss_place.copy_(loss.detach())
        self.hits += (logits.argmax(1) == labels).sum()
        self.classifier.mapping.observe(source_logits, labels)
        if not self.parameters:
            return []
        return list(
            torch.autograd.grad(
                loss / global_batch, self.parameters, allow_unused=True, materialize_grads=True
            )
        )

    def _update(self, gradients: list[list[Tensor]], lr: float) -> None:
        """Sum the parts' gradients, of all processes and in one order whoever computed them, and take a step."""
        if self.optimizer is None:
            return
        for parameter in reversed(self.parameters):
            own = torch.stack([part.pop() for part in gradients])
            parameter.grad = self.accelerator.gather(own).sum(0)
        for buffer in self.statistics if self.accelerator.num_processes > 1 else ():
            buffer.copy_(self.accelerator.reduce(buffer, "mean"))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()

    def check_finite(self) -> Tensor:
        """Return the loss of each step (steps,), summed over its images; every process must call it.

        Raises:
            UserError: A loss, or what trains, is no number.
        """
        losses = self.accelerator.gather(self.losses).sum(0)
        bad = (~losses.isfinite()).nonzero()
        if not len(bad) and all(parameter.isfinite().all() for parameter in self.parameters):
            return losses
        done = len(self.state.history)
        kept = f"the checkpoints up to epoch {done} are whole" if done else "no epoch was finished"
        raise UserError(
            f"the loss turned NaN or infinite at epoch {self.state.epoch + 1}, "
            f"step {int(bad[0]) + 1 if len(bad) else self.state.step}; "
            f"optim.lr is {self.config.optim.lr}, try a smaller one; {kept}"
        )

    def end_epoch(self) -> None:
        """Close the epoch under way: its row joins the history."""
        state = self.state
        state.history.append(state.row)
        state.epoch, state.step, state.row = state.epoch + 1, 0, {}
        self._begin_epoch()

    def keep_best(self, result: EvalResult) -> None:
        """Remember the classifier as it stands where it validates better than ever before."""
        if self.state.best is None or result.acc1 > self.state.best["acc1"]:
            self.state.best = {"epoch": self.state.epoch + 1, **result.to_dict()}
            self.best_state = {k: v.detach().clone() for k, v in self.classifier.trained_state().items()}

    # What decides the future, as tensors by name. Sums that each process holds a part of are summed: whoever goes
    # on, with however many processes, starts from the whole.

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds beside ``state``; every process must call it."""
        own = {f"trained.{name}": value for name, value in self.classifier.trained_state().items()}
        own |= {f"best.{name}": value for name, value in self.best_state.items()}
        if self.optimizer is not None:
            for index, slots in self.optimizer.state_dict()["state"].items():
                own |= {f"optim.{index}.{slot}": value for slot, value in slots.items() if value is not None}
        sums = {name: self.accelerator.reduce(value, "sum") for name, value in self._sums().items()}
        return own | sums | {"sum.losses": self.accelerator.gather(self.losses).sum(0)}

    def restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Go on from what ``tensors`` and ``state`` gave.

        Raises:
            UserError: They are no run's with this config.
        """
        try:
            self._restore(tensors, state)
        except (UserError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"the checkpoint does not fit this run: {str(error) or error!r}") from error

    def _restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        def part(prefix: str) -> dict[str, Tensor]:
            return {
                name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)
            }

        def fit(name: str, value: Tensor, place: Tensor) -> None:
            if value.shape != place.shape:
                raise ValueError(f"{name} is {tuple(value.shape)}, not {tuple(place.shape)}")

        self.state = State(**state)
        self.state.check(self.steps)
        self.classifier.load_trained_state(part("trained."))
        self.best_state = {name: value.to(self.accelerator.device) for name, value in part("best.").items()}
        own = self.classifier.trained_state()
        if bool(self.best_state) != (self.state.best is not None) or self.best_state.keys() - own.keys():
            raise ValueError("the best prompt is not whole")
        for name, value in self.best_state.items():
            fit(name, value, own[name])
        if self.optimizer is not None:
            slots: dict[int, dict[str, Tensor]] = {}
            for name, value in part("optim.").items():
                index, slot = name.split(".", 1)
                if slot != "step":
                    fit(name, value, self.parameters[int(index)])
                slots.setdefault(int(index), {})[slot] = value
            groups = self.optimizer.state_dict()["param_groups"]
            self.optimizer.load_state_dict({"state": slots, "param_groups": groups})
        self.losses.zero_()
        for name, value in {**self._sums(), "sum.losses": self.losses[0]}.items():
            fit(name, tensors[name], value)
            value.copy_(tensors[name]) if self.accelerator.is_main_process else value.zero_()

    def _sums(self) -> dict[str, Tensor]:
        """Return the whole numbers that each process has a part of."""
        running = getattr(self.classifier.mapping, "running", None)
        return {"sum.hits": self.hits} | ({} if running is None else {"sum.running": running})


def _moving_statistics(network: nn.Module) -> list[Tensor]:
    """Return what batch norms gather where a network trains; those of a frozen one never move."""
    if not any(parameter.requires_grad for parameter in network.parameters()):
        return []
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    found = [value for norm in norms for value in (norm.running_mean, norm.running_var)]
    return [value for value in found if value is not None]


def _means(losses: Tensor, hits: Tensor, seen: int) -> dict[str, float]:
    return {"loss": float(losses.sum()) / max(1, seen), "acc": int(hits) / max(1, seen)}
