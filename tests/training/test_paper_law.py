"""The paper's method step by step against its formulas, in float64; and what protocol paper computes in fp32."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from conftest import closed_source, coloured_images
from torch import nn

from clipvp import Task, fit, load_source
from clipvp.data.batches import Batches, epoch_order
from clipvp.images import Resize
from clipvp.mappings.frequency import FrequencyMapping
from clipvp.model import PromptedClassifier
from clipvp.progress import Progress
from clipvp.prompts.padding import PaddingPrompt
from clipvp.training.step import Trainer

SIZE, CANVAS, CLASSES, LABELS, BATCH, EPOCHS = 7, 12, 4, 9, 6, 3
TOLERANCE = 1e-12


class Network(nn.Module):
    """A small smooth network."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.kernel = nn.Parameter(torch.randn(5, 3, 3, 3, generator=generator, dtype=torch.float64) / 3)
        self.head = nn.Parameter(torch.randn(LABELS, 5, generator=generator, dtype=torch.float64) * 3)

    def forward(self, pixels):
        maps = torch.tanh(nn.functional.conv2d(pixels, self.kernel, stride=2))
        return maps.mean((2, 3)) @ self.head.T


def double_classifier(network: Network) -> PromptedClassifier:
    source = closed_source(Network(), LABELS, (CANVAS, CANVAS))
    source.network = network  # a source computes in fp32; this one does not
    source.run = lambda network, pixels: network(pixels.double())
    mapping = FrequencyMapping(LABELS, CLASSES)
    prompt = PaddingPrompt((CANVAS, CANVAS), (SIZE, SIZE)).double()
    names = [f"class {c}" for c in range(CLASSES)]
    return PromptedClassifier(prompt, source, mapping, names, share_border=False)


def greedy(counts: np.ndarray) -> list[int]:
    """Return the source label of each class: the largest cell, its row and column struck out, again and again."""
    counts, chosen = counts.astype(float), [-1] * CLASSES
    for _ in range(CLASSES):
        best = max(
            (counts[s, t], -s, -t) for s in range(LABELS) for t in range(CLASSES) if counts[s, t] > -np.inf
        )
        s, t = -best[1], -best[2]
        chosen[t] = s
        counts[s, :] = counts[:, t] = -np.inf
    return chosen


def test_sixty_steps_and_three_refreshes_are_the_formulas(config):
    run = config(
        prompt={"kind": "padding", "image_size": SIZE},
        optim={"name": "adam", "lr": 0.01, "schedule": "multistep", "milestones": [0.5, 0.72], "gamma": 0.1},
        train={"epochs": EPOCHS, "batch_size": BATCH, "protocol": "paper"},
        seed=7,
    )
    task = Task.from_dataset(
        coloured_images(120, CLASSES, seed=1),
        coloured_images(12, CLASSES, seed=2),
        class_names=[f"class {c}" for c in range(CLASSES)],
        protocol="paper",
    )
    accelerator, network = Accelerator(), Network().requires_grad_(False)
    classifier = double_classifier(network)
    decoded = task.tensors("train", Resize((SIZE, SIZE)), progress=False)
    images = decoded.images.float().div(255).double()
    labels = decoded.labels
    trainer = Trainer(classifier, {"train": Batches(decoded, accelerator)}, run, accelerator, Progress(False))

    mean, std = (value.double() for value in (classifier.source.mean, classifier.source.std))
    left, right = (CANVAS - SIZE + 1) // 2, (CANVAS - SIZE) // 2
    inside = np.zeros((CANVAS, CANVAS))
    inside[left : CANVAS - right, left : CANVAS - right] = 1
    mask = torch.from_numpy(1 - inside).expand(3, CANVAS, CANVAS)
    delta = torch.zeros(3, CANVAS, CANVAS, dtype=torch.float64)
    first, second, step, mapped = torch.zeros_like(delta), torch.zeros_like(delta), 0, []

    def logits(rows, delta):
        pixels = torch.zeros(len(rows), 3, CANVAS, CANVAS, dtype=torch.float64)
        pixels[:, :, left : CANVAS - right, left : CANVAS - right] = images[rows]
        pixels = pixels + mask / (1 + torch.exp(-delta))
        return network((pixels - mean) / std)

    for epoch in range(EPOCHS):
        seen = logits(torch.arange(120), delta).argmax(1)
        counts = np.zeros((LABELS, CLASSES))
        np.add.at(counts, (seen.numpy(), labels.numpy()), 1)
        index = greedy(counts)
        trainer.refresh_mapping("counting")
        assert classifier.mapping.source_index.tolist() == index
        mapped.append(index)

        rate = 0.01 * 0.1 ** sum(epoch >= int(share * EPOCHS) for share in (0.5, 0.72))
        losses = []
        for rows in epoch_order(120, 7, epoch).split(BATCH):
            delta.requires_grad_(True)
            target = logits(rows, delta)[:, index]
            loss = (target.exp().sum(1).log() - target[torch.arange(len(rows)), labels[rows]]).mean()
            (gradient,) = torch.autograd.grad(loss, delta)
            losses.append(loss.item())
            with torch.no_grad():
                step += 1
                first = 0.9 * first + 0.1 * gradient
                second = 0.999 * second + 0.001 * gradient**2
                moved = (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
                delta = delta.detach() - rate * moved
        row = trainer.train_epoch("training")
        trainer.end_epoch()
        assert row["train_loss"] == pytest.approx(np.mean(losses), abs=1e-6)  # sums of losses are fp32
        assert row["lr"] == pytest.approx(rate, rel=1e-12)
        assert (classifier.prompt.delta.detach() - delta).abs().max() < TOLERANCE
    assert step == 60 and delta.abs().max() > 0.1
    assert len({tuple(index) for index in mapped}) > 1  # the prompt moved the mapping


def test_counts_and_scores_are_in_full_precision(config, tmp_path):
    """With weights that bf16 rounds to another prediction, protocol paper scores as fp32 does, and val does not."""

    class Near(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 1, 1, bias=False)
            self.conv.weight.data = torch.full((1, 3, 1, 1), 1 / 3)
            self.head = nn.Linear(1, 2)
            self.head.weight.data = torch.tensor([[1.0], [1.001]])  # equal in bf16
            self.head.bias.data.zero_()

        def forward(self, pixels):
            return self.head(self.conv(pixels).mean((2, 3)))

    bright = np.full((20, 4, 4, 3), 250, np.uint8)
    data = [(image, label % 2) for label, image in enumerate(bright)]
    task = Task.from_dataset(data, data, class_names=["a", "b"], protocol="paper")
    scores, mapped = {}, {}
    for protocol in ("paper", "val"):
        run = config(
            prompt={"kind": "none"},
            mapping={"kind": "frequency", "refresh": "never"},
            train={"epochs": 1, "batch_size": 5, "protocol": protocol},
            output=str(tmp_path / protocol),
        )
        source = closed_source(Near(), 2, (4, 4), "bf16")
        classifier = PromptedClassifier(
            PaddingPrompt((4, 4), (4, 4)), source, FrequencyMapping(2, 2), ["a", "b"]
        )
        classifier.prompt.requires_grad_(False)
        result = fit(classifier, task, run)
        mapped[protocol] = classifier.mapping.source_index.tolist()
        scores[protocol] = result.test["last"].counts
        assert source.precision == "bf16"
    cells = {
        name: found.at(torch.tensor([0, 1]), torch.tensor([1, 1])).tolist() for name, found in scores.items()
    }
    assert cells == {"paper": [0, 10], "val": [10, 0]}
    assert mapped == {"paper": [1, 0], "val": [0, 1]}


def test_training_stays_in_the_precision_of_the_source(tiny_timm, config):
    source = load_source(tiny_timm, canvas=32)
    source.precision, source.keeps_weights = "bf16", True
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        half = source(pixels)
        with source.full_precision():
            full = source(pixels)
        assert torch.equal(source(pixels), half) and not torch.equal(half, full)
        source.precision = "fp32"
        assert torch.equal(source(pixels), full)  # the weights are as they were loaded
