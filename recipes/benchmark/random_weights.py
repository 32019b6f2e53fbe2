"""A timm architecture as a source without its weights: for measuring time, which does not depend on them."""

from __future__ import annotations

import torch
from torch import nn

from clipvp.config.schema import SourceConfig
from clipvp.labels.space import LabelSpace
from clipvp.registry import UserError
from clipvp.sources.base import Source, check_forward, check_precision
from clipvp.sources.closed import create_timm
from clipvp.sources.preprocessing import timm_preprocessing


def random_source(config: SourceConfig, device: torch.device) -> Source:
    """Return the source of a name ``timm:ARCHITECTURE[.TAG]`` with weights drawn at random, the same each time.

    Raises:
        UserError: The name is not timm's, or the architecture does not take the canvas.
    """
    import timm
    import timm.data

    scheme, _, model = config.name.partition(":")
    architecture = model.partition(".")[0]
    if scheme != "timm" or not timm.is_model(architecture):
        raise UserError(
            f"source: {config.name!r} cannot have random weights; give a timm architecture, such as timm:resnet18"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        canvas = None if config.canvas is None else (config.canvas, config.canvas)
        try:
            network = create_timm(architecture, canvas)
            preprocessing = timm_preprocessing(timm.data.resolve_model_data_config(network)).at(canvas)
            _settle(network, preprocessing.resize.size)
        except (RuntimeError, AssertionError) as error:
            raise UserError(
                f"source: {config.name!r} cannot be built: {str(error).splitlines()[0]}"
            ) from error
    labels = LabelSpace(tuple(f"label {index}" for index in range(network.num_classes)))
    precision = check_precision(config.precision, device)
    return check_forward(Source(network, labels, preprocessing, config.name, precision=precision).to(device))


@torch.no_grad()
def _settle(network: nn.Module, canvas: tuple[int, int]) -> None:
    """Give normalisations the statistics of noise; as built, values would grow or vanish with depth."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    network.eval()
    for norm in norms:
        nn.init.ones_(norm.weight)  # zero at the end of residual branches, which would add nothing
        norm.momentum = 1.0
        norm.train()
    network(torch.randn(4, 3, *canvas))
    network.eval()
