"""The paper's detector of near duplicates: a picture and its distortion are one.

near-tiny trains on two CPU cores in half an hour. The paper's model is a ResNet-50, its batch 1,712
and its data about 30 million pictures (Radford et al. 2021, appendix C):

    deepspeed recipes/near_duplicates.py --model.name near-RN50 --batch-size 1712 \
        --data.train "shards/*.tar" --schedule.epochs 1 --optimizer.lr 1e-3

Captions of the shards are passed over. What the run leaves is a detector:

    python -m clipfast.curate near "shards/*.tar" --detector runs/near_duplicates ...
"""

import clipfast.models.detectors  # noqa: F401  # makes near-tiny and near-RN50 known
from clipfast.engine import (
    CheckpointConfig,
    Config,
    DataConfig,
    LoggingConfig,
    ModelOptions,
    OptimizerConfig,
    ScheduleConfig,
    main,
)


def config() -> Config:
    """A run of the tiny detector on the embedded drawings."""
    return Config(
        model=ModelOptions("near-tiny"),
        # Both artists: a CLIP is measured on the second, a detector on other pictures altogether.
        data=DataConfig(train=("sample/noto", "sample/twemoji")),
        # A filter's length does not depend on its weights, so their decay changes the size of steps
        # alone.
        optimizer=OptimizerConfig(lr=2e-3, beta2=0.98, weight_decay=0.0),
        # 3,822 drawings / 256 = 14 steps an epoch; 30 epochs = 420 steps.
        schedule=ScheduleConfig(epochs=30, warmup_steps=20),
        logging=LoggingConfig(name="near_duplicates", every_steps=10),
        checkpoint=CheckpointConfig(every_steps=100),
        batch_size=256,
    )


if __name__ == "__main__":
    main(config())
