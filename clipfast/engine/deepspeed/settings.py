"""DeepSpeed's configuration, written from the plan of a run."""

from typing import Any

import torch

from clipfast.engine.plan import RunPlan

# Elements that travel at a time. DeepSpeed's default of 5e8 sets aside 2 GB in float32, as much as
# the weights of a model of this size; 100 to 200 MB fill a link as well.
BUCKET = 50_000_000


def deepspeed_settings(plan: RunPlan) -> dict[str, Any]:
    """The dictionary that ``deepspeed.initialize`` takes."""
    gradients = {}
    if plan.sums_in_float32:
        # Summed in half precision, many micro-batches lose what is below half a unit of the sum.
        gradients = {"data_types": {"grad_accum_dtype": "fp32"}}
    # DeepSpeed then hands the optimizer bf16 weights and leaves to it what it keeps beside them.
    ours = plan.optimizer_holds_masters
    return {
        **gradients,
        "train_micro_batch_size_per_gpu": plan.micro_batch,
        "gradient_accumulation_steps": plan.micro_batches,
        "gradient_clipping": plan.config.optimizer.clip_norm,
        "bf16": {
            "enabled": plan.dtype == torch.bfloat16,
            "bf16_master_weights_and_grads": ours,
            "bf16_optimizer_states": ours,
        },
        "fp16": {"enabled": plan.dtype == torch.float16, "initial_scale_power": 16},
        "zero_optimization": {
            "stage": plan.stage,
            "reduce_bucket_size": BUCKET,
            "allgather_bucket_size": BUCKET,
        },
        "zero_allow_untested_optimizer": True,
        # Progress is ours to print; DeepSpeed's own line would break the bar.
        "steps_per_print": 2**62,
    }
