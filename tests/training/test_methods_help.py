"""On data where a method must help, it does: a planted mapping is found, a planted prompt is learned."""

import pytest
import torch
from conftest import closed_source, coloured_images, small_config
from torch import nn

from clipvp import PromptedClassifier, Task, fit
from clipvp.mappings.frequency import FrequencyMapping
from clipvp.mappings.random import RandomMapping
from clipvp.prompts.none import NoPrompt
from clipvp.prompts.padding import PaddingPrompt

NAMES = ["a", "b", "c", "d"]
PLANTED = [7, 3, 15, 0]  # the source label that the network gives the images of each class
COLOURS = torch.tensor([[(t * 53) % 256, (t * 101 + 40) % 256, (t * 197 + 90) % 256] for t in range(4)]) / 255


def task() -> Task:
    parts = (coloured_images(count, 4, seed=seed) for seed, count in enumerate((80, 80, 40)))
    train, test, val = parts
    return Task.from_dataset(train, test, val=val, class_names=NAMES)


class Planted(nn.Module):
    """20 labels, of which 4 are the colours of the classes, 16 nearly white; if ``gated``, it needs a bright frame."""

    def __init__(self, gated: bool):
        super().__init__()
        self.colours = nn.Parameter(1 - 0.1 * torch.rand(20, 3, generator=torch.Generator().manual_seed(0)))
        self.gated = gated
        with torch.no_grad():
            self.colours[PLANTED] = COLOURS

    def forward(self, pixels):
        pixels = pixels * 0.5 + 0.5  # undo the source's normalisation
        colour = pixels[:, :, 6:-6, 6:-6].mean((2, 3))
        logits = -40 * (colour[:, None] - self.colours).square().sum(2)
        if not self.gated:
            return logits
        frame = (pixels[:, :, :3].mean((1, 2, 3)) + pixels[:, :, -3:].mean((1, 2, 3))) / 2
        gate = torch.sigmoid(20 * (frame - 0.7))[:, None]
        blind = torch.zeros(20)
        blind[PLANTED[0]] = 5.0  # its answer as long as the frame is dark
        return gate * logits + (1 - gate) * blind


def trained(prompt, mapping, output, gated=False, **sections):
    source = closed_source(Planted(gated), 20, canvas=(24, 24))
    classifier = PromptedClassifier(prompt, source, mapping, NAMES)
    result = fit(classifier, task(), small_config("test", output, **sections))
    return classifier, result


@pytest.mark.parametrize("refresh", [1, "never"], ids=["ILM", "FLM"])
@pytest.mark.parametrize("statistics", ["exact", "running"])
@pytest.mark.parametrize("assignment", ["greedy", "optimal"])
def test_a_planted_mapping_is_found(refresh, statistics, assignment, tmp_path):
    mapping = FrequencyMapping(20, 4, refresh, assignment, statistics)
    classifier, result = trained(NoPrompt((24, 24)), mapping, tmp_path / "run")
    assert mapping.source_index.tolist() == PLANTED
    assert result.results["metrics"]["test.last"]["acc1"] == 1.0
    assert [row["share"] for row in result.results["mapping_table"]] == [1.0] * 4


def test_a_random_mapping_does_not_find_it(tmp_path):
    _, result = trained(NoPrompt((24, 24)), RandomMapping(20, 4, seed=0), tmp_path / "run")
    assert result.results["metrics"]["test.last"]["acc1"] < 0.6


def test_a_planted_prompt_is_learned(tmp_path):
    """Without a bright frame the network answers the same for all images; a padding prompt learns to light it."""
    sections = {"train": {"epochs": 12}, "optim": {"lr": 0.2}}

    def planted():
        mapping = RandomMapping(20, 4)
        mapping.source_index.copy_(torch.tensor(PLANTED))
        return mapping

    _, without = trained(NoPrompt((24, 24)), planted(), tmp_path / "none", gated=True, **sections)
    prompt = PaddingPrompt((24, 24), (12, 12))
    start = prompt.learned().pixels.mean()
    _, result = trained(prompt, planted(), tmp_path / "padding", gated=True, **sections)
    assert without.results["metrics"]["test.last"]["acc1"] < 0.6
    assert result.results["metrics"]["test.last"]["acc1"] == 1.0
    assert prompt.learned().pixels.mean() > start
