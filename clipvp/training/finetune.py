"""Full fine-tuning: a source whose weights all train, with a new head whose labels are the target classes.

Scores and results are made as for a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..labels.space import LabelSpace
from ..mappings.identity import IdentityMapping
from ..model import PromptedClassifier
from ..prompts.none import NoPrompt
from ..registry import UserError
from ..sources.base import Source


class FinetunedSource(Source):
    """A copy of a source's network, which trains, with a new classifier layer of T outputs, which starts at zero.

    Args:
        source: Gives the network up to its last linear layer; it is not changed.
        class_names: The T target classes.

    Raises:
        UserError: The weights are in half precision, or the network is compiled or does not end in a linear layer.
    """

    def __init__(self, source: Source, class_names: Sequence[str]):
        if source.precision != "fp32":
            raise UserError(f"source.precision: {source.precision} weights do not train; give fp32")
        if source.is_compiled:
            raise UserError("source.compile: true goes with prompts; fine-tuning runs uncompiled")
        super().__init__(
            source.headless_network(),
            LabelSpace(tuple(class_names)),
            source.preprocessing,
            source.name,
            source.revision,
            fingerprint=source.fingerprint,
        )
        self.head = nn.Linear(source.num_features, len(class_names))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.network.requires_grad_(True)

    def train(self, mode: bool = True) -> FinetunedSource:
        """Follow ``mode``, as any network that trains."""
        return nn.Module.train(self, mode)

    def encode(self, pixels: Tensor) -> Tensor:
        return self.run_network(pixels)

    def score(self, features: Tensor) -> Tensor:
        return self.head(features)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.score(self.encode(pixels))


def finetune_classifier(source: Source, class_names: Sequence[str]) -> PromptedClassifier:
    """Return a classifier without a prompt whose source trains, with a new head for the task's classes."""
    finetuned, count = FinetunedSource(source, class_names), len(class_names)
    mapping = IdentityMapping(count, count, range(count))
    classifier = PromptedClassifier(NoPrompt(source.canvas), finetuned, mapping, class_names)
    return classifier.to(source.mean.device)
