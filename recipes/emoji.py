"""A tiny CLIP on the embedded emoji drawings."""

from clipfast.engine import (
    CheckpointConfig,
    Config,
    DataConfig,
    LoggingConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    main,
)


def config() -> Config:
    return Config(
        model=ModelConfig("RN-tiny"),
        data=DataConfig(
            train=("sample/noto",), eval=("sample/noto", "sample/twemoji"), scale=(0.8, 1.0)
        ),
        optimizer=OptimizerConfig(lr=1e-3),
        schedule=ScheduleConfig(epochs=30, warmup_steps=20),
        logging=LoggingConfig(name="emoji", every_steps=1, figures="demo"),
        checkpoint=CheckpointConfig(every_steps=50),
        batch_size=256,
    )


if __name__ == "__main__":
    main(config())
