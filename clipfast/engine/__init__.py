"""The engine: configuration, the plan of a run, DeepSpeed, the training loop."""

import warnings
from typing import Any

from clipfast.engine.cli import main
from clipfast.engine.config import (
    CheckpointConfig,
    Config,
    ConfigError,
    DataConfig,
    LoggingConfig,
    ModelOptions,
    OptimizerConfig,
    ScheduleConfig,
    ZeroConfig,
)

__all__ = [
    "CheckpointConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "LoggingConfig",
    "ModelOptions",
    "OptimizerConfig",
    "ScheduleConfig",
    "ZeroConfig",
    "main",
]


def __getattr__(name: str) -> Any:
    if name == "ModelConfig":
        message = "clipfast.engine.ModelConfig is now ModelOptions; the old name goes with 0.3"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return ModelOptions
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
