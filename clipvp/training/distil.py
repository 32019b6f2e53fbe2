"""Distil the answers of a service into a linear layer on the features of a local source."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.batches import epoch_order

_LEAST_DEVIATION = 1e-6


def distil(
    features: Tensor,
    probabilities: Tensor,
    *,
    epochs: int = 100,
    batch_size: int = 64,
    lr: float = 1e-3,
    weight_decay: float = 0.01,
    seed: int = 0,
) -> tuple[Tensor, Tensor, float]:
    """Return the layer whose softmax is near the answers: AdamW on KL(answers || softmax), the rate falls as a cosine.

    The features are standardised while it trains, and that is folded into the layer.

    Args:
        features: (N, D).
        probabilities: (N, S), rows that sum to 1.
        epochs: Passes over the N images.
        batch_size: Images a step.
        lr: Rate of the first step.
        weight_decay: Of AdamW.
        seed: Of the order of the images.

    Returns:
        Weight (S, D), bias (S,), and the mean KL divergence at the end, in nats.

    Source: AReS (arXiv 2604.01474), stage 1, there without standardising.
    """
    mean, deviation = features.mean(0), features.std(0, correction=0).clamp(min=_LEAST_DEVIATION)
    inputs = (features - mean) / deviation
    layer = torch.nn.Linear(features.shape[1], probabilities.shape[1]).to(features.device)
    with torch.no_grad():
        layer.weight.zero_(), layer.bias.zero_()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=lr, weight_decay=weight_decay)
    batches = -(-len(inputs) // batch_size)
    for epoch in range(epochs):
        for place, batch in enumerate(epoch_order(len(inputs), seed, epoch).split(batch_size)):
            done = (epoch * batches + place) / (epochs * batches)
            optimizer.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * done)) / 2
            optimizer.zero_grad()
            _divergence(layer(inputs[batch]), probabilities[batch]).backward()
            optimizer.step()
    with torch.no_grad():
        left = float(_divergence(layer(inputs), probabilities))
        weight = layer.weight / deviation
        return weight, layer.bias - weight @ mean, left


def _divergence(logits: Tensor, probabilities: Tensor) -> Tensor:
    return F.kl_div(logits.log_softmax(1), probabilities, reduction="batchmean")
