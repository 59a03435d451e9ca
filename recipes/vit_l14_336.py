"""ViT-L/14@336px: one further epoch of ViT-L/14 at 336 px. Radford et al. 2021, tables 18 and 20.

deepspeed recipes/vit_l14_336.py --model.weights runs/vit-l-14/final.safetensors \\
    --data.train 'shards/{00000..41407}.tar'
"""

from clipfast.engine import Config, ModelOptions, OptimizerConfig, ScheduleConfig, main


def config() -> Config:
    """The paper's last epoch. The 16 x 16 grid of positions is interpolated to 24 x 24 on load."""
    return Config(
        # 577 tokens an image instead of 257. A pair leaves 0.45 GB of half-precision activations,
        # 57 GB for a share of 128; 0.28 GB with selective recomputation, 0.03 GB with full.
        model=ModelOptions("ViT-L/14@336px", recompute="auto"),
        optimizer=OptimizerConfig(lr=2e-5, beta2=0.98, eps=1e-6, weight_decay=0.2, stats="fp16"),
        # 400,000,000 pairs / 32,768 = 12,207 steps, one epoch.
        schedule=ScheduleConfig(epochs=1, warmup_steps=2000),
        # 256 GPUs x 128 = 32,768.
        batch_size=32_768,
    )


if __name__ == "__main__":
    main(config())
