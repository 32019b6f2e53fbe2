"""What a run is, and how it is read."""

from .schema import (
    DataConfig,
    MappingConfig,
    OptimConfig,
    PromptConfig,
    RunConfig,
    SourceConfig,
    TrainConfig,
)

__all__ = [
    "DataConfig",
    "MappingConfig",
    "OptimConfig",
    "PromptConfig",
    "RunConfig",
    "SourceConfig",
    "TrainConfig",
]
