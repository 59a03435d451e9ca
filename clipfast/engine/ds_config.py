"""DeepSpeed's configuration, derived from ours."""

from typing import Any

import torch

from clipfast.engine.config import Config


def deepspeed_config(config: Config, dtype: torch.dtype, world_size: int) -> dict[str, Any]:
    """The dictionary that ``deepspeed.initialize`` takes.

    Args:
        config: the run.
        dtype: of weights and activations, as resolved for the device.
        world_size: number of ranks.
    """
    micro_batches = config.micro_batches(world_size)
    return {
        "train_micro_batch_size_per_gpu": config.local_batch(world_size) // micro_batches,
        "gradient_accumulation_steps": micro_batches,
        "gradient_clipping": config.optimizer.clip_norm,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "fp16": {"enabled": dtype == torch.float16, "initial_scale_power": 16},
        "zero_optimization": {"stage": config.zero.stage},
        "zero_allow_untested_optimizer": True,
        # Progress is ours to print; DeepSpeed's own line would break the bar.
        "steps_per_print": 2**62,
    }
