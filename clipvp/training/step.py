"""The steps of a run on one process of many, and everything that decides its future.

The order of the images depends on seed and epoch alone and the learning rates on the step alone, so that a run is
a function of its config, and a checkpoint between any two steps is enough to go on as if nothing had happened. Where
the source is frozen, a step's parts are summed in one order, so that runs with as many parts a step, processes times
gradient accumulation steps, round alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from ..config.schema import RunConfig
from ..data.batches import Batches, epoch_order
from ..mappings.statistic import Statistic, sum_over_processes
from ..model import PromptedClassifier
from ..progress import Progress
from ..prompts.base import VisualPrompt
from ..prompts.part_norm import PartNorm
from ..registry import GRADIENTS, UserError
from ..results.correct import pack
from ..scoring.scores import EvalResult, score
from ..sources.base import Source
from .gradients import GradientRule
from .optim import ScheduledOptimizer, lr_at
from .queries import Queries
from .state import State
from .statistics import count_pass, fit_mapping


def exact_scores(classifier: PromptedClassifier, config: RunConfig) -> AbstractContextManager:
    """Context manager: inside, the source computes as ``train.protocol`` wants it in counting and scoring."""
    return classifier.source.full_precision() if config.train.protocol == "paper" else nullcontext()


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
        self.steps = -(-len(data["train"]) // config.train.batch_size)
        classifier.mapping.begin(len(data["train"]))
        groups = classifier.parameter_groups()
        self.parameters = [parameter for own in groups.values() for parameter in own]
        self.optimizer = (
            ScheduledOptimizer(config.optim, groups, self.steps, config.train.epochs) if groups else None
        )
        if self.optimizer is not None and self.optimizer.whole_canvas:
            for module in classifier.prompt.modules():  # prompts may be inside the parts of others
                if isinstance(module, VisualPrompt):
                    module.masks_gradient = False
        self.gradient_rule: GradientRule = GRADIENTS.get(config.train.gradient)(config.train, config.seed)
        self.source_is_frozen = classifier.source_is_frozen
        self.running_norms = _running_norms(classifier.source)
        self.part_norms = [module for module in classifier.modules() if isinstance(module, PartNorm)]
        self.running = self._empty_running()
        self.state = State()
        self.best_state: dict[str, Tensor] = {}
        self.noted: list[Tensor | None] = []  # of the parts of the current step, for part norms
        self.sums: dict[str, Tensor] = {}  # of what trains, over the last epochs, float64 on the CPU
        # A step asks the source so often about each of its images.
        evaluations = self.gradient_rule.evaluations if groups else 1
        self.queries = Queries(classifier, data, config.train, evaluations, self.state.queries)
        self.queries.asked("features", self.queries.of_outputs())
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        parts = self.config.train.gradient_accumulation_steps
        # Of this process's parts of each step, summed over their images.
        self.losses = torch.zeros(parts, self.steps, device=self.accelerator.device)
        self.hits = torch.zeros((), dtype=torch.int64, device=self.accelerator.device)

    def _empty_running(self) -> Statistic | None:
        """Return the statistic that the steps gather for the mapping, None where a pass gathers it."""
        mapping = self.classifier.mapping
        return mapping.statistic() if mapping.running else None

    def score(self, split: str, phase: str) -> EvalResult:
        """Score one split with the classifier as it is now."""
        batches, size = self.data[split], self.config.train.batch_size
        self.queries.asked("validating" if split == "val" else "testing", self.queries.of_pass(split))
        with exact_scores(self.classifier, self.config):
            return score(self.classifier, batches, size, self.accelerator, self._watch(batches, phase))

    def refresh_mapping(self, phase: str) -> int | None:
        """Fit the mapping to a new statistic; return how many classes changed their first label, if any has one."""
        own, train = self.running, self.data["train"]
        if self.queries.counted(self.state.epoch):
            self.queries.asked("counting", self.queries.of_counting())
            size = self.config.train.batch_size
            with exact_scores(self.classifier, self.config):
                own = count_pass(self.classifier, train, size, self._watch(train, phase))
        self.running = self._empty_running()
        return fit_mapping(self.classifier, own)

    def _watch(self, batches: Batches, phase: str) -> Callable:
        return self.progress.watch(batches.num_local_images(self.config.train.batch_size), phase)

    def train_epoch(self, phase: str, after_step: Callable[[], None] = lambda: None) -> dict[str, Any]:
        """Take the remaining steps of the current epoch; return its last learning rates, its loss and its accuracy.

        An epoch that ``train.max_queries`` cuts has fewer steps.

        Raises:
            UserError: The loss is not a number.
        """
        train, config, state = self.data["train"], self.config, self.state
        batches = epoch_order(len(train), config.seed, state.epoch).split(config.train.batch_size)
        shares = [train.share(batch, config.train.gradient_accumulation_steps) for batch in batches]
        sizes = [sum(map(len, parts)) for parts in shares]
        augment = train.augmentation(config.train.augment, config.seed, state.epoch)
        seen = sum(sizes[: state.step])
        self.classifier.train()
        with self.progress.bar(sum(sizes), phase, done=seen) as bar:
            for step in range(state.step, len(batches)):
                cost = self.queries.of_step(len(batches[step]))
                if not self.queries.allowed(cost):
                    break
                parts = [
                    partial(self._gradient, part, augment, len(batches[step]), self.losses[place, step])
                    for place, part in enumerate(shares[step])
                ]
                self._update(parts)
                self.queries.asked("training", cost)
                seen, state.step = seen + sizes[step], step + 1
                bar.advance(sizes[step], partial(_means, self.losses, self.hits, seen))
                after_step()
        losses = self.check_finite()
        hits = self.accelerator.reduce(self.hits, "sum")
        count = sum(map(len, batches[: state.step]))
        means = {"train_loss": float(losses.sum()) / count, "train_acc1": int(hits) / count}
        return {**self._rates(state.epoch * self.steps + state.step - 1), **means}

    def _rates(self, step: int) -> dict[str, float]:
        """Return the learning rates for the metrics: ``lr``, and ``lr.GROUP`` of groups with settings of their own."""
        rates = self.optimizer.rates(step) if self.optimizer is not None else {}
        own = {f"lr.{name}": rates[name] for name in self.config.optim.groups if name in rates}
        return {"lr": lr_at(self.config.optim, step, self.steps, self.config.train.epochs), **own}

    def _gradient(self, part: Tensor, augment: Any, global_batch: int, loss_place: Tensor) -> list[Tensor]:
        """Return what one part of a step adds to the gradient of each parameter; note its loss, hits and statistic."""
        if not len(part):  # a last batch may have fewer images than there are processes and parts
            self.noted.append(self._take_norms())
            return [torch.zeros_like(parameter) for parameter in self.parameters]
        images, labels = self.data["train"].take(part, augment)
        self.classifier.source.weights.begin(self.config.seed, self.state.epoch, part)
        calls = 0

        def loss() -> Tensor:
            nonlocal calls
            calls += 1
            outputs = self.data["train"].outputs(self.classifier, images)
            logits = self.classifier.mapping(outputs)
            total = F.cross_entropy(logits, labels, reduction="sum")
            extra = self.classifier.mapping.extra_loss(outputs, labels)
            total = total if extra is None else total + extra
            if calls == 1:
                self.noted.append(self._take_norms())
                loss_place.copy_(total.detach())
                self.hits += (logits.argmax(1) == labels).sum()
                if self.running is not None:
                    self.running.add(outputs.detach(), labels)
            return total / global_batch

        if not self.parameters:
            loss()
            return []
        step = self.state.epoch * self.steps + self.state.step
        gradient = self.gradient_rule(loss, self.parameters, step)
        if calls != self.gradient_rule.evaluations:
            name = self.config.train.gradient
            said = self.gradient_rule.evaluations
            raise TypeError(f"the gradient rule {name!r} says {said} evaluations and made {calls}")
        self._take_norms()  # of later evaluations; else a next part without images would take it for its own
        return gradient

    def _update(self, parts: list[Callable[[], list[Tensor]]]) -> None:
        """Compute the gradients of the parts of a step, sum them over all processes, and take the step."""
        if self.optimizer is None:
            for part in parts:
                part()
            return
        if self.source_is_frozen:
            # In one order, whichever process computes which part.
            gradients = [part() for part in parts]
            for parameter in reversed(self.parameters):
                # A sum rounds by the memory layout, and gathering makes it contiguous.
                own = torch.stack([part.pop() for part in gradients]).contiguous()
                parameter.grad = self.accelerator.gather(own).sum(0)
        else:  # of a whole network one gradient is kept, not one for each part
            for part in parts:
                for parameter, gradient in zip(self.parameters, part(), strict=True):
                    parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
            if self.accelerator.num_processes > 1:
                for parameter in self.parameters:
                    parameter.grad = self.accelerator.reduce(parameter.grad, "sum")
                for value in self.running_norms:
                    value.copy_(self.accelerator.reduce(value, "mean"))
        self.optimizer.step(self.state.epoch * self.steps + self.state.step)
        self.classifier.prompt.constrain()
        self._update_norms()

    def _take_norms(self) -> Tensor | None:
        """Return what the part norms kept of the part just computed, in one row; nothing was kept of an empty part."""
        return torch.cat([norm.take() for norm in self.part_norms]) if self.part_norms else None

    def _update_norms(self) -> None:
        """Move the running statistics of part norms by all parts of a step, in the order of the parts."""
        if self.part_norms:
            sizes = [2 * len(norm.running_mean) + 1 for norm in self.part_norms]
            for row in self.accelerator.gather(torch.stack(self.noted)):
                for norm, taken in zip(self.part_norms, row.split(sizes), strict=True):
                    norm.update(taken)
        self.noted.clear()

    def check_finite(self) -> Tensor:
        """Return the loss of each step (steps,), summed over its images; every process must call it.

        Raises:
            UserError: A loss, or a parameter, is not a number.
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
        """Close the current epoch: its row joins the history."""
        state, config = self.state, self.config.train
        if config.average and state.epoch >= config.epochs - config.average:
            for name, value in self._trained():
                value = value.detach().cpu().double()
                self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
        state.history.append(state.row)
        state.epoch, state.step, state.row = state.epoch + 1, 0, {}
        self._begin_epoch()

    def keep_best(self, result: EvalResult) -> None:
        """Keep a copy of what trains, if it validates better than ever before."""
        if self.state.best is None or result.acc1 > self.state.best["acc1"]:
            right = {"correct": pack(result.correct)}
            self.state.best = {"epoch": self.state.epoch + 1, **result.to_dict(), **right}
            self.best_state = copied(self.classifier.trained_state())

    def _trained(self) -> Iterator[tuple[str, Tensor]]:
        """Yield what is averaged over epochs: the parameters that train, and the running statistics of part norms."""
        statistics = {id(value) for norm in self.part_norms for value in norm.buffers()}
        named = itertools.chain(self.classifier.named_parameters(), self.classifier.named_buffers())
        return ((name, value) for name, value in named if value.requires_grad or id(value) in statistics)

    def average_state(self) -> dict[str, Tensor]:
        """Return the last state with what trains averaged over the last epochs, see ``train.average``."""
        means = {name: (total / self.config.train.average).float() for name, total in self.sums.items()}
        return copied(self.classifier.trained_state()) | means

    # What decides the future, as tensors by name. Sums of which each process holds a part are summed, so that a run
    # can go on with another number of processes.

    def tensors(self) -> dict[str, Tensor]:
        """Return what a checkpoint holds beside ``state``; every process must call it."""
        own = {f"trained.{name}": value for name, value in self.classifier.trained_state().items()}
        own |= {f"best.{name}": value for name, value in self.best_state.items()}
        own |= {f"average.{name}": value for name, value in self.sums.items()}
        if self.optimizer is not None:
            for index, slots in self.optimizer.optimizer.state_dict()["state"].items():
                own |= {f"optim.{index}.{slot}": value for slot, value in slots.items() if value is not None}
        own |= {"sum.hits": self.accelerator.reduce(self.hits, "sum")}
        own |= {"sum.losses": self.accelerator.gather(self.losses).sum(0)}
        if self.running is not None:
            total = sum_over_processes(self.running, self._empty_running())
            own |= {f"sum.statistic.{name}": value for name, value in total.tensors().items()}
        return own

    def restore(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Go on from what ``tensors`` and ``state`` gave.

        Raises:
            UserError: They do not belong to a run with this config.
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
        self.queries.counts = self.state.queries
        self.state.check(self.steps)
        self.classifier.load_trained_state(part("trained."))
        self.best_state = {name: value.to(self.accelerator.device) for name, value in part("best.").items()}
        own = self.classifier.trained_state()
        if bool(self.best_state) != (self.state.best is not None) or self.best_state.keys() - own.keys():
            raise ValueError("the best prompt is not whole")
        for name, value in self.best_state.items():
            fit(name, value, own[name])
        self.sums = part("average.")
        epochs = self.config.train.epochs - (self.config.train.average or 0)
        if bool(self.sums) != (self.state.epoch > epochs and bool(self.parameters)):
            raise ValueError("the sums over the last epochs are not whole")
        for name, value in self.sums.items():
            fit(name, value, own[name])
        if self.optimizer is not None:
            slots: dict[int, dict[str, Tensor]] = {}
            for name, value in part("optim.").items():
                index, slot = name.split(".", 1)
                if slot != "step":
                    fit(name, value, self.parameters[int(index)])
                slots.setdefault(int(index), {})[slot] = value
            optimizer = self.optimizer.optimizer
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": slots, "param_groups": groups})
        self.losses.zero_()
        main = self.accelerator.is_main_process  # it takes what all processes had gathered
        for name, value in {"sum.hits": self.hits, "sum.losses": self.losses[0]}.items():
            fit(name, tensors[name], value)
            value.copy_(tensors[name]) if main else value.zero_()
        self.running = self._empty_running()
        if self.running is not None:
            gathered = part("sum.statistic.")
            if gathered.keys() != self.running.tensors().keys():
                raise ValueError("it holds no running statistic of this mapping; start anew")
            if main:
                self.running.add_tensors(gathered)


def copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state that later training does not change."""
    return {name: value.detach().clone() for name, value in state.items()}


def _running_norms(source: Source) -> list[Tensor]:
    """Return the running statistics of batch norms that training moves."""
    if not source.weights.trains_norms:
        return []
    norms = [
        module for module in source.network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]
    found = [value for norm in norms for value in (norm.running_mean, norm.running_var)]
    return [value for value in found if value is not None]


def _means(losses: Tensor, hits: Tensor, seen: int) -> dict[str, float]:
    return {"loss": float(losses.sum()) / max(1, seen), "acc": int(hits) / max(1, seen)}
