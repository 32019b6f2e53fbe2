"""Label mappings: source logits (B, S) become target logits (B, T).

The modules hold which source label serves which class; the mathematics is in ``assignment``. Nothing here knows where
the logits come from.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..config.schema import NEVER, MappingConfig
from ..labels.space import LabelSpace
from ..registry import MAPPINGS, UserError
from .assignment import add_counts, assign_greedy, assign_optimal, assign_within

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
