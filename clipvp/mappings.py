"""Label mappings: source logits (B, S) become target logits (B, T).

The mathematics is in pure functions on tensors; the modules hold which source label serves which class.
Nothing here knows where the logits come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from .config import NEVER, MappingConfig
from .labels import LabelSpace
from .registry import MAPPINGS, UserError

# So many of the largest cells are sorted at once: nearly always all that are needed, and never all of a full matrix.
_BLOCK = 1 << 16


def add_counts(counts: Tensor, source_logits: Tensor, targets: Tensor) -> None:
    """Add one batch to a count matrix, in place.

    Args:
        counts: int64 (S, T); cell (s, t) is the number of images of class t whose top-1 source label is s.
        source_logits: (B, S), finite.
        targets: int64 (B,), each in 0..T-1.
    """
    cell = source_logits.argmax(1) * counts.shape[1] + targets
    counts.view(-1).index_add_(0, cell, torch.ones_like(cell))


def count_matrix(batches: Iterable[tuple[Tensor, Tensor]], num_source: int, num_target: int) -> Tensor:
    """Return the counts int64 (S, T) over batches of (source logits (B, S), targets (B,)).

    Only one batch of logits exists at a time. Counts add up over batches and over processes.

    Raises:
        ValueError: A target, on the CPU, is outside 0..T-1.

    Source: ILM-VP (arXiv 2211.11635), section 4, frequency label mapping.
    """
    counts = None
    for source_logits, targets in batches:
        if counts is None:
            counts = torch.zeros(num_source, num_target, dtype=torch.int64, device=source_logits.device)
        # Not on an accelerator: to look at the targets would be to wait for it in every batch.
        looks = len(targets) and targets.device.type == "cpu"
        if looks and not 0 <= int(targets.min()) <= int(targets.max()) < num_target:
            raise ValueError(f"targets {int(targets.min())}..{int(targets.max())} leave 0..{num_target - 1}")
        add_counts(counts, source_logits, targets)
    return torch.zeros(num_source, num_target, dtype=torch.int64) if counts is None else counts


def _check_counts(counts: Tensor) -> np.ndarray:
    num_source, num_target = counts.shape
    if num_target > num_source:
        raise UserError(
            f"{num_target} target classes need as many source labels, and the source has {num_source}; "
            "take a source with more labels or, for CLIP, more templates"
        )
    if counts.dtype.is_floating_point or (counts.numel() and int(counts.min()) < 0):
        raise ValueError("counts must be whole numbers, none below zero")
    return counts.detach().cpu().numpy()


def assign_greedy(counts: Tensor) -> Tensor:
    """Return, for each class, the source label it takes by greedy choice of the largest counts.

    The largest cell maps its source label to its class and removes its row and column, T times over.
    Ties: the lowest source index, then the lowest target index. When only zero cells are left, the
    remaining classes in ascending order take the remaining labels in ascending order.

    Args:
        counts: int64 (S, T), S >= T.

    Returns:
        int64 (T,) of distinct source indices, on the CPU.

    Raises:
        UserError: T > S.

    Source: ILM-VP (arXiv 2211.11635), algorithm 1, and its reference's mapping.
    """
    table = _check_counts(counts)
    chosen = np.full(table.shape[1], -1, dtype=np.int64)
    labels, classes = np.arange(table.shape[0]), np.arange(table.shape[1])
    while len(classes):
        flat = table.reshape(-1)
        lowest = _lowest_of_largest(flat)
        cells = np.flatnonzero(flat >= lowest)  # ascending: by source index, then by target index
        label_free, class_free = np.ones(len(labels), dtype=bool), np.ones(len(classes), dtype=bool)
        cells = cells[np.argsort(-flat[cells], kind="stable")]
        for start in range(0, len(cells), 4096):
            sources, targets = np.divmod(cells[start : start + 4096], len(classes))
            free = label_free[sources] & class_free[targets]
            for source, target in zip(sources[free].tolist(), targets[free].tolist(), strict=True):
                if label_free[source] and class_free[target]:
                    chosen[classes[target]] = labels[source]
                    label_free[source] = class_free[target] = False
            if not class_free.any():
                break
        labels, classes = labels[label_free], classes[class_free]
        if lowest == 1:  # only zero cells are left
            chosen[classes] = labels[: len(classes)]
            break
        table = table[label_free][:, class_free]
    return torch.from_numpy(chosen)


def _lowest_of_largest(values: np.ndarray) -> int:
    """Return a value, at least 1, that about the ``_BLOCK`` largest values reach, or 1 if they are few.

    A sample is enough: whatever is returned, greedy choice among the cells that reach it is exact.
    """
    sample = values[:: max(1, len(values) // _BLOCK)]
    rank = max(0, len(sample) - 1 - _BLOCK * len(sample) // len(values))
    return max(1, int(np.partition(sample, rank)[rank]))


def assign_optimal(counts: Tensor) -> Tensor:
    """Return the one-to-one assignment with the largest total count.

    Args:
        counts: int64 (S, T), S >= T.

    Returns:
        int64 (T,) of distinct source indices, on the CPU.

    Raises:
        UserError: T > S.

    Source: the linear sum assignment problem, solved by scipy.
    """
    from scipy.optimize import linear_sum_assignment  # a large import that few runs need

    table = _check_counts(counts)
    num_target = table.shape[1]
    some = table.any(axis=1)
    # A label without any count serves as well as another: T of them, the first, are enough.
    rows = np.sort(np.concatenate([np.flatnonzero(some), np.flatnonzero(~some)[:num_target]]))
    picked, targets = linear_sum_assignment(table[rows], maximize=True)
    chosen = np.empty(num_target, dtype=np.int64)
    chosen[targets] = rows[picked]
    return torch.from_numpy(chosen)


def assign_within(counts: Tensor) -> Tensor:
    """Return, for each class, its own text label with the largest count: pure template selection.

    Labels are ``template * T + class``. Ties, and classes that none of their own labels was seen for, take the
    lowest template.

    Args:
        counts: int64 (S, T), S a multiple of T.

    Returns:
        int64 (T,) of distinct source indices, on the CPU.
    """
    num_source, num_target = counts.shape
    own = counts.reshape(num_source // num_target, num_target, num_target).diagonal(
        dim1=1, dim2=2
    )  # (templates, T)
    template = torch.from_numpy(own.cpu().numpy().argmax(0))  # the first of equals
    return template * num_target + torch.arange(num_target)


ASSIGNMENTS = {"greedy": assign_greedy, "optimal": assign_optimal}


class LabelMapping(nn.Module):
    """Base of the mappings in which one source label serves one class.

    Args:
        num_source: S.
        num_target: T, at most S.

    Attributes:
        source_index: int64 (T,), the source label of each class; -1 before the first fit.
        chosen_count: int64 (T,), the count of the chosen cell; -1 where nothing was counted.
        class_count: int64 (T,), the images of each class that were counted; -1 likewise.
        settings: The keyword arguments that build this mapping again, ready for JSON.
    """

    kind: str

    def __init__(self, num_source: int, num_target: int, **settings):
        super().__init__()
        if num_target > num_source:
            raise UserError(
                f"{num_target} target classes need as many source labels, and the source has {num_source}; "
                "take a source with more labels or, for CLIP, more templates"
            )
        self.num_source, self.num_target = num_source, num_target
        self.settings = {"num_source": num_source, "num_target": num_target, **settings}
        for name in ("source_index", "chosen_count", "class_count"):
            self.register_buffer(name, torch.full((num_target,), -1, dtype=torch.int64))

    @classmethod
    def from_config(
        cls, config: MappingConfig, labels: LabelSpace, class_names: Sequence[str], seed: int
    ) -> LabelMapping:
        """Build the mapping that a config describes for a source's labels and a task's classes."""
        raise TypeError(f"{cls.__name__} does not say how it is built from a config")

    def due(self, epoch: int) -> bool:
        """Return whether the mapping wants new counts before the steps of ``epoch`` (0, 1, ...)."""
        return False

    def observe(self, source_logits: Tensor, targets: Tensor) -> None:
        """See one training batch: logits (B, S) and classes (B,). Nothing by default."""

    def running_counts(self) -> Tensor | None:
        """Return the counts int64 (S, T) gathered by ``observe``, or None where a pass is needed."""
        return None

    def fit(self, counts: Tensor) -> None:
        """Choose the source labels from counts int64 (S, T)."""
        raise TypeError(f"a {self.kind} mapping is not made from counts")

    def forward(self, source_logits: Tensor) -> Tensor:
        return source_logits.index_select(1, self.source_index)

    def describe(self, labels: LabelSpace, class_names: Sequence[str]) -> list[dict]:
        """Return one row a class, for people: class, label, its index, count and share of the class."""
        rows = []
        columns = (self.source_index.tolist(), self.chosen_count.tolist(), self.class_count.tolist())
        for name, index, count, total in zip(class_names, *columns, strict=True):
            rows.append(
                {
                    "class": name,
                    "label": labels.names[index] if index >= 0 else None,
                    "index": index,
                    "count": count if count >= 0 else None,
                    "share": count / total if total > 0 else None,
                }
            )
        return rows

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.settings.items())


class RandomMapping(LabelMapping):
    """RLM: a random one-to-one map, fixed by the seed.

    Source: ILM-VP (arXiv 2211.11635), section 4; the usual mapping of visual prompting before it.
    """

    kind = "random"

    def __init__(self, num_source: int, num_target: int, seed: int = 0):
        super().__init__(num_source, num_target, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        self.source_index.copy_(torch.randperm(num_source, generator=generator)[:num_target])

    @classmethod
    def from_config(cls, config, labels, class_names, seed) -> RandomMapping:
        return cls(len(labels), len(class_names), seed=seed)


class FrequencyMapping(LabelMapping):
    """FLM and ILM: each class takes the source label that its images are seen as most often.

    Args:
        num_source: S.
        num_target: T.
        refresh: Epochs between two refreshes (1 is ILM), or "never": counted once, before training (FLM).
        assignment: greedy or optimal.
        statistics: exact: the loop runs a counting pass. running: after the first such pass the counts of
            the training steps since the last refresh serve.
        within: "class" lets a class take labels of its own name only, for label spaces made of text.

    Source: ILM-VP (arXiv 2211.11635), section 4 and algorithm 1.
    """

    kind = "frequency"

    def __init__(
        self,
        num_source: int,
        num_target: int,
        refresh: int | str = 1,
        assignment: str = "greedy",
        statistics: str = "exact",
        within: str | None = None,
    ):
        super().__init__(
            num_source,
            num_target,
            refresh=refresh,
            assignment=assignment,
            statistics=statistics,
            within=within,
        )
        self.refresh, self.assign = refresh, assign_within if within else ASSIGNMENTS[assignment]
        gathers = statistics == "running" and refresh != NEVER
        self.register_buffer(
            "running",
            torch.zeros(num_source, num_target, dtype=torch.int64) if gathers else None,
            persistent=False,
        )

    @classmethod
    def from_config(cls, config, labels, class_names, seed) -> FrequencyMapping:
        if config.within and not labels.is_text:
            raise UserError(
                "mapping.within: class needs a label space made of text; the source's labels are closed"
            )
        size = (len(labels), len(class_names))
        return cls(*size, config.refresh, config.assignment, config.statistics, config.within)

    def due(self, epoch: int) -> bool:
        return epoch == 0 or (self.refresh != NEVER and epoch % self.refresh == 0)

    def observe(self, source_logits: Tensor, targets: Tensor) -> None:
        if self.running is not None:
            add_counts(self.running, source_logits.detach(), targets)

    def running_counts(self) -> Tensor | None:
        fitted = self.source_index[0] >= 0
        return self.running.clone() if self.running is not None and fitted else None

    def fit(self, counts: Tensor) -> None:
        if tuple(counts.shape) != (self.num_source, self.num_target):
            raise ValueError(
                f"counts are {tuple(counts.shape)}, not (S, T) = {(self.num_source, self.num_target)}"
            )
        index = self.assign(counts).to(counts.device)
        self.source_index.copy_(index)
        self.chosen_count.copy_(counts[index, torch.arange(self.num_target, device=counts.device)])
        self.class_count.copy_(counts.sum(0))
        if self.running is not None:
            self.running.zero_()


class IdentityMapping(LabelMapping):
    """Each class takes the source label of its own name; for CLIP, its own text in one template (VP + TP).

    Args:
        num_source: S.
        num_target: T.
        source_index: The source label of each class.
    """

    kind = "identity"

    def __init__(self, num_source: int, num_target: int, source_index: Sequence[int]):
        super().__init__(num_source, num_target, source_index=list(source_index))
        self.source_index.copy_(torch.tensor(list(source_index)))

    @classmethod
    def from_config(cls, config, labels, class_names, seed) -> IdentityMapping:
        if labels.is_text:
            if len(labels.templates) != 1:
                raise UserError(
                    f"mapping.kind: identity takes one template, not {len(labels.templates)}; "
                    f"set mapping.templates, such as {labels.templates[0]!r}"
                )
            return cls(len(labels), len(class_names), range(len(class_names)))

        def plain(name: str) -> str:
            return " ".join(name.replace("_", " ").casefold().split())

        index = {plain(name): position for position, name in reversed(list(enumerate(labels.names)))}
        missing = [name for name in class_names if plain(name) not in index]
        if missing:
            raise UserError(
                f"mapping.kind: identity needs a source label for each class; {len(missing)} of {len(class_names)} "
                f"have none, the first: {', '.join(map(repr, missing[:5]))}; mapping.kind: frequency needs no names"
            )
        return cls(len(labels), len(class_names), [index[plain(name)] for name in class_names])


def build_mapping(
    config: MappingConfig, labels: LabelSpace, class_names: Sequence[str], seed: int
) -> LabelMapping:
    """Return the registered mapping that a config names, for a source's labels and a task's classes."""
    return MAPPINGS.get(config.kind).from_config(config, labels, class_names, seed)
