"""Frequency label mapping, fitted once (FLM) or again and again (ILM)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from ..registry import UserError, check_choice
from .assignment import assign_greedy, assign_optimal, assign_within
from .one_to_one import OneToOneMapping
from .refresh import RefreshConfig, Refreshed
from .statistic import Counts


@dataclass
class FrequencyConfig(RefreshConfig):
    """FLM and ILM: each class takes the source label that its training images are seen as most often.

    Args:
        assignment: greedy (the paper's) or optimal (largest total count).
        within: class restricts a class to the labels of its own name: template selection (CLIP).
    """

    kind: str = "frequency"
    assignment: str = "greedy"
    within: str | None = None

    def __post_init__(self):
        super().__post_init__()
        check_choice("mapping.assignment", self.assignment, ["greedy", "optimal"])
        if self.within is not None:
            check_choice("mapping.within", self.within, ["class"])


class FrequencyMapping(Refreshed, OneToOneMapping):
    """FLM and ILM: each class takes the source label that its images are seen as most often.

    Args:
        num_source: S.
        num_target: T.
        refresh, statistics: See ``Refreshed``; a refresh every epoch is ILM, one alone FLM.
        assignment: greedy or optimal.
        within: "class" lets a class take labels of its own name only, for label spaces made of text.
        class_of: The class of each of the S labels, for ``within``; template-major when empty.

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
        class_of: Sequence[int] | None = None,
    ):
        settings = {"refresh": refresh, "assignment": assignment, "statistics": statistics, "within": within}
        if class_of is not None:
            settings["class_of"] = list(class_of)
        super().__init__(num_source, num_target, **settings)
        self.set_refresh(refresh, statistics)
        if within:
            owner = torch.arange(num_source) % num_target if class_of is None else torch.tensor(class_of)
            self.assign = partial(assign_within, class_of=owner)
        else:
            self.assign = {"greedy": assign_greedy, "optimal": assign_optimal}[assignment]

    @classmethod
    def from_config(cls, config, source, class_names, seed) -> FrequencyMapping:
        labels, class_of = source.labels, None
        if config.within and not labels.is_text:
            raise UserError(
                "mapping.within: class needs a label space made of text; the source's labels are closed"
            )
        if config.within and not labels.is_grid:
            class_of = labels.class_of
        options = config.refresh, config.assignment, config.statistics, config.within, class_of
        return cls(len(labels), len(class_names), *options)

    def statistic(self) -> Counts:
        return Counts(self.num_source, self.num_target)

    def fit(self, statistic: Counts) -> None:
        """Choose the source labels from counts of S labels and T classes."""
        size = statistic.num_source, statistic.num_target
        if size != (self.num_source, self.num_target):
            raise ValueError(f"counts are {size}, not (S, T) = {(self.num_source, self.num_target)}")
        index = self.assign(statistic)
        self.source_index.copy_(index)
        self.chosen_count.copy_(statistic.at(index, torch.arange(self.num_target)))
        self.class_count.copy_(statistic.by_class())
