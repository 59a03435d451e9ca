"""ResNet-50: 102M parameters, 224 px. Radford et al. 2021, tables 18 and 19.

deepspeed recipes/rn50.py --data.train 'shards/{00000..41407}.tar'
"""

from clipfast.engine import Config, ModelOptions, OptimizerConfig, ScheduleConfig, main


def config() -> Config:
    """The paper's run on its 400 million pairs."""
    return Config(
        model=ModelOptions("RN50"),
        optimizer=OptimizerConfig(lr=5e-4, beta2=0.999, eps=1e-8, weight_decay=0.2, stats="fp16"),
        # 400,000,000 pairs / 32,768 = 12,207 steps an epoch; 32 epochs = 390,625 steps.
        schedule=ScheduleConfig(epochs=32, warmup_steps=2000),
        # 64 GPUs x 512 = 32,768. On fewer, or smaller ones: --micro-batch.
        batch_size=32_768,
    )


if __name__ == "__main__":
    main(config())
