"""Plans of small runs, for whatever device: only a plan is made, nothing runs there."""

import torch

from clipfast.engine import Config, ModelOptions, OptimizerConfig, ZeroConfig
from clipfast.engine.launch import Process
from clipfast.engine.plan import RunPlan, decide

EXACT = OptimizerConfig()
PAPER = OptimizerConfig(stats="fp16", image_weights="remainder", text_weights="stochastic")


def plan(
    optimizer: OptimizerConfig = EXACT,
    precision: str = "fp32",
    stage: int | str = "auto",
    ranks: int = 1,
    rank: int = 0,
    **options,
) -> RunPlan:
    """A run of 32 pairs, on GPUs for fp16 and on CPUs for the rest.

    Args:
        optimizer: its options.
        precision: of weights and activations.
        stage: of ZeRO.
        ranks: how many processes.
        rank: whose plan.
        options: other fields of the configuration.
    """
    options = {"model": ModelOptions("RN-tiny", compile="none"), "batch_size": 32, **options}
    config = Config(optimizer=optimizer, zero=ZeroConfig(stage), precision=precision, **options)
    device = torch.device("cuda", rank) if precision == "fp16" else torch.device("cpu")
    return decide(config, Process(rank, rank, ranks, ranks, device))
