"""ResNet-50 at 64x the compute: 623M parameters, 448 px. Radford et al. 2021, tables 18 and 19.

deepspeed recipes/rn50x64.py --data.train 'shards/{00000..41407}.tar'
"""

from clipfast.engine import Config, ModelOptions, OptimizerConfig, ScheduleConfig, main


def config() -> Config:
    """The paper's run on its 400 million pairs."""
    return Config(
        # A pair leaves 0.91 GB of half-precision activations at 448 px, 58 GB for a share of 64;
        # 0.47 GB with selective recomputation, 0.31 GB with full.
        model=ModelOptions("RN50x64", recompute="auto"),
        # Radford et al. 2021, section 2.5: "half-precision Adam statistics" and "half-precision
        # stochastically rounded text encoder weights"; the image encoder's stay exact.
        optimizer=OptimizerConfig(
            lr=3.6e-4,
            beta2=0.999,
            eps=1e-8,
            weight_decay=0.2,
            stats="fp16",
            image_weights="remainder",
            text_weights="stochastic",
        ),
        # 400,000,000 pairs / 32,768 = 12,207 steps an epoch; 32 epochs = 390,625 steps.
        schedule=ScheduleConfig(epochs=32, warmup_steps=2000),
        # ZeRO-1 (the default), over all ranks: 623M x 6 bytes of bf16 weights and Adam, 420M x 2 of
        # the image encoder's remainders = 4.6 GB; in float32 throughout, 7.5 GB.
        # The paper: 592 V100 for 18 days. 32,768 / 592 = 55.4, padded to 56: 592 x 56 = 33,152
        # (--batch-size 33152); a power of two divides evenly: 512 GPUs x 64 = 32,768.
        batch_size=32_768,
    )


if __name__ == "__main__":
    main(config())
