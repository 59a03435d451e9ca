"""The demo: a CLIP of 17M parameters on 1,911 emoji drawings, in minutes on two CPU cores.

It trains on one artist's drawings (Noto) and is measured on them and on the other artist's drawings
of the same concepts (Twemoji), which it has never seen.

deepspeed recipes/emoji.py
"""

from clipfast.engine import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    LoggingConfig,
    ModelOptions,
    OptimizerConfig,
    ScheduleConfig,
    ZeroConfig,
    main,
)


def config() -> Config:
    """A run of four minutes at most on two cores."""
    return Config(
        model=ModelOptions("RN-tiny"),
        data=DataConfig(
            train=("sample/noto",), eval=("sample/noto", "sample/twemoji"), scale=(0.9, 1.0)
        ),
        eval=EvaluationConfig(every=50),
        optimizer=OptimizerConfig(lr=7e-4, beta2=0.98),
        # 1,911 drawings / 256 = 7 steps an epoch; 25 epochs = 175 steps.
        schedule=ScheduleConfig(epochs=25, warmup_steps=10),
        zero=ZeroConfig(stage=1),
        logging=LoggingConfig(name="emoji", every_steps=1, figures="demo"),
        checkpoint=CheckpointConfig(every_steps=100),
        batch_size=256,
    )


if __name__ == "__main__":
    main(config())
