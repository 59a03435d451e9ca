"""ViT-L/14: 428M parameters, 224 px. Radford et al. 2021, tables 18 and 20.

deepspeed recipes/vit_l14.py --data.train 'shards/{00000..41407}.tar'
"""

from clipfast.engine import Config, ModelOptions, OptimizerConfig, ScheduleConfig, main


def config() -> Config:
    """The paper's run on its 400 million pairs."""
    return Config(
        model=ModelOptions("ViT-L/14"),
        optimizer=OptimizerConfig(lr=4e-4, beta2=0.98, eps=1e-6, weight_decay=0.2, stats="fp16"),
        # 400,000,000 pairs / 32,768 = 12,207 steps an epoch; 32 epochs = 390,625 steps.
        schedule=ScheduleConfig(epochs=32, warmup_steps=2000),
        # The paper: 256 V100 for 12 days. 256 GPUs x 128 = 32,768.
        batch_size=32_768,
    )


if __name__ == "__main__":
    main(config())
