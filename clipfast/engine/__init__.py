"""The engine: configuration, the plan of a run, DeepSpeed, the training loop."""

from typing import Any

from clipfast.engine.cli import main
from clipfast.engine.config import (
    CheckpointConfig,
    Config,
    ConfigError,
    DataConfig,
    EvaluationConfig,
    LoggingConfig,
    LossOptions,
    ModelOptions,
    OptimizerConfig,
    ScheduleConfig,
    ZeroConfig,
)
from clipfast.models.renamed import warn_renamed

__all__ = [
    "CheckpointConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "EvaluationConfig",
    "LoggingConfig",
    "LossOptions",
    "ModelOptions",
    "OptimizerConfig",
    "ScheduleConfig",
    "ZeroConfig",
    "main",
]


def __getattr__(name: str) -> Any:
    if name == "ModelConfig":
        warn_renamed("clipfast.engine.ModelConfig", "ModelOptions")
        return ModelOptions
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
