r"""A CLIP that classifies CIFAR-10 by the names of its classes, trained on two CPU cores.

Its 50,000 training images stand beside captions of their classes' names in 18 phrasings.

python -m clipfast.eval pairs --data cifar10:cifar-10-batches-py --out cifar10-pairs
deepspeed recipes/cifar10.py --data.train 'cifar10-pairs/*.tar' \
    --eval.tasks zeroshot=cifar10:cifar-10-batches-py --eval.every 200
python -m clipfast.eval zeroshot --weights runs/cifar10 --data cifar10:cifar-10-batches-py
"""

from clipfast.engine import (
    CheckpointConfig,
    Config,
    DataConfig,
    LoggingConfig,
    ModelOptions,
    OptimizerConfig,
    ScheduleConfig,
    ZeroConfig,
    main,
)


def config() -> Config:
    """A run of 17 minutes on two cores."""
    return Config(
        model=ModelOptions("RN-tiny"),
        data=DataConfig(scale=(0.5, 1.0)),
        optimizer=OptimizerConfig(lr=1e-3, beta2=0.98),
        schedule=ScheduleConfig(epochs=7, warmup_steps=100),
        zero=ZeroConfig(stage=1),
        logging=LoggingConfig(name="cifar10", every_steps=10),
        checkpoint=CheckpointConfig(every_steps=200),
        batch_size=256,
    )


if __name__ == "__main__":
    main(config())
