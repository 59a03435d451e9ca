"""The engine: configuration, DeepSpeed, the training loop."""

from clipfast.engine.config import (
    CheckpointConfig,
    Config,
    ConfigError,
    DataConfig,
    LoggingConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    ZeroConfig,
)
from clipfast.engine.main import main

__all__ = [
    "CheckpointConfig",
    "Config",
    "ConfigError",
    "DataConfig",
    "LoggingConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ScheduleConfig",
    "ZeroConfig",
    "main",
]
