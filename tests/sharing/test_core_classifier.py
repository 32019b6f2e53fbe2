"""Classifiers with a prompt that says where it acts train as the plain ones do."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from test_sharing import Residual, freeze
from torch import nn
from torch.nn import functional as F

from clipvp.config.schema import TrainConfig
from clipvp.data.batches import Batches
from clipvp.data.sets import ImageTensors
from clipvp.images import Resize
from clipvp.labels.space import LabelSpace
from clipvp.mappings.frequency import FrequencyMapping
from clipvp.model import PromptedClassifier
from clipvp.progress import Progress
from clipvp.prompts.base import VisualPrompt
from clipvp.prompts.border import BorderPrompt
from clipvp.prompts.padding import PaddingPrompt
from clipvp.prompts.patch import PatchPrompt
from clipvp.sources.base import Preprocessing, Source
from clipvp.training.cores import with_cores

CANVAS, NAMES = (48, 48), ["a", "b", "c"]
PROMPTS = {
    "padding": lambda: PaddingPrompt(CANVAS, (12, 12)),
    "large image": lambda: PaddingPrompt(CANVAS, (40, 40)),
    "frame": lambda: BorderPrompt(CANVAS, 4),
    "frame, normalized, clipped": lambda: BorderPrompt(CANVAS, 4, [0.2, 0.3, 0.4], True),
    "patch": lambda: PatchPrompt(CANVAS, 8, (36, 4)),
}


class DoubleSource(Source):
    """A source in float64."""

    def run(self, network, *inputs):
        return network(*inputs)


def network() -> nn.Module:
    torch.manual_seed(0)
    stem = [nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(inplace=True)]
    block = Residual(nn.Sequential(nn.Conv2d(6, 6, 3, 1, 1), nn.SiLU(), nn.Conv2d(6, 6, 3, 1, 1)), True)
    end = [nn.Conv2d(6, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)]
    return freeze(nn.Sequential(*stem, block, *end), dtype=torch.float32)


def classifier(prompt: VisualPrompt, share: bool, kind=DoubleSource) -> PromptedClassifier:
    labels = LabelSpace(tuple(f"label {i}" for i in range(5)))
    source = kind(network(), labels, Preprocessing(Resize(CANVAS), (0.5,) * 3, (0.25,) * 3), "test")
    made = PromptedClassifier(prompt, source, FrequencyMapping(5, 3), NAMES, share)
    return made.double() if kind is DoubleSource else made


def maps_in_parts(made: PromptedClassifier) -> list[tuple[bool, bool]]:
    """Return, for each later convolution that sees a map in parts, whether it has an outer part and a core."""
    from clipvp.sharing.split_map import SplitMap

    seen = []

    def look(module, inputs):
        if isinstance(inputs[0], SplitMap):
            seen.append((inputs[0].layout.has_outer, inputs[0].layout.core is not None))

    for module in made.source.network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_pre_hook(look)
    return seen


def sixty_steps(
    made: list[PromptedClassifier], outputs: list[Callable[[], torch.Tensor]]
) -> list[list[float]]:
    """Train classifiers side by side, with refreshes, on what ``outputs`` gives of six images; return their losses."""
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    optimizers = [torch.optim.Adam(each.prompt.parameters(), 0.01) for each in made]
    losses = [[] for _ in made]
    for step in range(60):
        for each, give, optimizer, own in zip(made, outputs, optimizers, losses, strict=True):
            if step % 20 == 0:
                with torch.no_grad():
                    counts = each.mapping.statistic()
                    counts.add(give(), labels)
                    each.mapping.fit(counts)
            loss = F.cross_entropy(each.mapping(give()), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            own.append(loss.item())
    return losses


def assert_the_same_training(made: list[PromptedClassifier], losses: list[list[float]]) -> None:
    deltas = [each.prompt.delta.detach() for each in made]
    assert torch.equal(made[0].mapping.links(1).index, made[1].mapping.links(1).index)
    assert deltas[1].abs().max() > 0.1 and losses[0][-1] < losses[0][1]
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(deltas[0], deltas[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", PROMPTS)
def test_sixty_steps_with_refreshes_are_those_of_the_plain_way(name):
    generator = torch.Generator().manual_seed(0)
    both = [classifier(PROMPTS[name](), share) for share in (True, False)]
    seen = maps_in_parts(both[0])
    images = torch.rand(6, 3, *both[0].prompt.image_size, generator=generator, dtype=torch.float64)
    losses = sixty_steps(both, [partial(made.source_outputs, images) for made in both])
    assert_the_same_training(both, losses)
    assert seen and any(core for _, core in seen) == (name not in ("padding", "patch"))
    assert any(outer for outer, _ in seen) == (name in ("padding", "patch", "large image"))


@pytest.mark.parametrize("name", ["large image", "frame", "frame, normalized, clipped"])
def test_sixty_steps_with_the_core_kept_in_memory_are_those_of_the_plain_way(name):
    both = [classifier(PROMPTS[name](), share) for share in (True, False)]
    size, generator = both[0].prompt.image_size, torch.Generator().manual_seed(0)
    images = torch.randint(256, (6, 3, *size), generator=generator, dtype=torch.uint8)
    batches = Batches(ImageTensors(images, torch.tensor([0, 1, 2, 0, 1, 2])), Accelerator(cpu=True))
    config, task = TrainConfig(keep_core="memory"), SimpleNamespace(images=lambda split: None, cache_dir=None)
    data = with_cores(
        both[0], {"train": batches}, task, "memory", config, Accelerator(cpu=True), Progress(False)
    )
    assert data["train"].kept.dtype == np.float64
    ways = list(zip(both, (data["train"], batches), strict=True))
    losses = sixty_steps(
        both,
        [lambda made=made, own=own: own.outputs(made, own.take(torch.arange(6))[0]) for made, own in ways],
    )
    assert_the_same_training(both, losses)


def test_a_prompt_that_does_not_say_where_it_acts_gets_whole_maps():
    class Silent(BorderPrompt):
        def acts_on(self):
            return None

    made = classifier(Silent(CANVAS, 6), True)
    seen = maps_in_parts(made)
    made.source_outputs(torch.rand(2, 3, *CANVAS, dtype=torch.float64)).sum().backward()
    assert seen == [] and made.prompt.delta.grad.abs().sum() > 0


def test_a_prompt_that_acts_nowhere_has_a_gradient_of_zeros():
    made = classifier(PaddingPrompt(CANVAS, CANVAS), True)
    made.source_outputs(torch.rand(2, 3, *CANVAS, dtype=torch.float64)).sum().backward()
    assert made.prompt.delta.grad.abs().sum() == 0
