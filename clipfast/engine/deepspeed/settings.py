"""DeepSpeed's configuration, derived from ours."""

from typing import Any

import torch

from clipfast.engine.config import Config
from clipfast.engine.optimizer import optimizer_holds_masters, sums_in_float32, zero_stage

# Elements that travel at a time. DeepSpeed's default of 5e8 sets aside 2 GB in float32, as much as
# the weights of a model of this size; 100 to 200 MB fill a link as well.
BUCKET = 50_000_000


def deepspeed_config(config: Config, dtype: torch.dtype, world_size: int) -> dict[str, Any]:
    """The dictionary that ``deepspeed.initialize`` takes.

    Args:
        config: the run.
        dtype: of weights and activations, as resolved for the device.
        world_size: number of ranks.
    """
    micro_batches = config.micro_batches(world_size)
    stage = zero_stage(config, dtype, world_size)
    gradients = {}
    if sums_in_float32(config, dtype, world_size):
        # Summed in half precision, many micro-batches lose what is below half a unit of the sum.
        gradients = {"data_types": {"grad_accum_dtype": "fp32"}}
    # DeepSpeed then hands the optimizer bf16 weights and leaves to it what it keeps beside them.
    ours = optimizer_holds_masters(config.optimizer, dtype, stage)
    return {
        **gradients,
        "train_micro_batch_size_per_gpu": config.local_batch(world_size) // micro_batches,
        "gradient_accumulation_steps": micro_batches,
        "gradient_clipping": config.optimizer.clip_norm,
        "bf16": {
            "enabled": dtype == torch.bfloat16,
            "bf16_master_weights_and_grads": ours,
            "bf16_optimizer_states": ours,
        },
        "fp16": {"enabled": dtype == torch.float16, "initial_scale_power": 16},
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": BUCKET,
            "allgather_bucket_size": BUCKET,
        },
        "zero_allow_untested_optimizer": True,
        # Progress is ours to print; DeepSpeed's own line would break the bar.
        "steps_per_print": 2**62,
    }
