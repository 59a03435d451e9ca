"""The cheapest run there is: a model of 1.7M parameters on 1,911 drawings, a step in 30 ms."""

from clipfast.engine import (
    CheckpointConfig,
    Config,
    DataConfig,
    LoggingConfig,
    ModelOptions,
    ScheduleConfig,
    main,
)
from clipfast.models import Architecture, ResNetConfig, TextConfig, register_model

MODEL = "RN-least"
register_model(
    Architecture(MODEL, 32, ResNetConfig((1, 1, 1, 1), 8, 32), TextConfig(1, 32, head_width=32))
)


def config() -> Config:
    """Two steps between checkpoints, no evaluation."""
    return Config(
        model=ModelOptions("RN-least"),
        data=DataConfig(train=("sample/noto",), eval_limit=32),
        schedule=ScheduleConfig(max_steps=8, warmup_steps=2),
        logging=LoggingConfig(name="run", every_steps=1, tensorboard=False, progress=False),
        checkpoint=CheckpointConfig(every_steps=2),
        batch_size=32,
    )


if __name__ == "__main__":
    main(config())
