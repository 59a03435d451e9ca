"""Which checkpoint mode a run can afford: free memory against what its model, optimizer and
activations need."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from clipfast.data import TrainLoader
from clipfast.engine.config import Config, OptimizerConfig, largest_divisor
from clipfast.engine.deepspeed.settings import BUCKET
from clipfast.engine.launch import Process
from clipfast.engine.optimizer import (
    DTYPES,
    optimizer_holds_masters,
    sums_in_float32,
    zero_stage,
)
from clipfast.models import CLIP, num_parameters
from clipfast.models.config import get_config
from clipfast.models.memory import MODES, fastest_checkpoint
from clipfast.optim import parameter_groups
from clipfast.optim.states import state_bytes_per_parameter
from clipfast.tokenizer import tokenize_with_lengths

# Left free for what is not counted: workspaces, decoded images, fragmentation. On a CPU the process
# was measured to hold 0.1 to 0.4 GB more than the allocator had given out.
_MARGIN, _SLACK = 0.1, 500_000_000
# What a compiled bottleneck keeps, by what it keeps uncompiled: counted by saved tensors.
_COMPILED_GROWTH = 1.15
_SHARDS_SAMPLED, _CAPTIONS_OF_EACH = 4, 32


@dataclass(frozen=True)
class ResolvedCheckpoint:
    """The mode a run trains with.

    Attributes:
        mode: none, selective or full.
        line: how it was found, for a person; empty where it was given.
    """

    mode: str
    line: str = ""


def resolve_checkpoint(
    config: Config, process: Process, dtype: torch.dtype, loader: TrainLoader
) -> ResolvedCheckpoint:
    """Turn ``auto`` into the fastest mode that fits on every rank. A collective in that case.

    Called before the model is built, so that none of the memory counted here is taken yet.

    Args:
        config: the run.
        process: this rank, its process group started.
        dtype: of weights and activations.
        loader: of the training data; some of its captions are read for their lengths.
    """
    if config.model.checkpoint != "auto":
        return ResolvedCheckpoint(config.model.checkpoint)
    model_config = get_config(config.model.name)
    with torch.device("meta"):
        model = CLIP(model_config)
    local_batch = config.local_batch(process.world_size)
    micro_batches = config.micro_batches(process.world_size)
    taken = state_bytes(
        model,
        config.optimizer,
        dtype,
        zero_stage(config, dtype, process.world_size),
        process.world_size,
        sums_in_float32(config, dtype, process.world_size),
    ).total
    if micro_batches == 1:
        taken += 4 * local_batch * config.batch_size  # the loss's strip of logits
    available = int((free_bytes(process) - _SLACK) * (1 - _MARGIN)) - taken
    shared = torch.tensor(available, dtype=torch.int64, device=process.device)
    dist.all_reduce(shared, op=dist.ReduceOp.MIN)
    available = int(shared.item())
    micro_batch = local_batch // micro_batches
    if config.model.compile == "blocks" or (
        config.model.compile == "auto" and process.device.type == "cuda"
    ):
        available = int(available / _COMPILED_GROWTH)
    mode, needed = fastest_checkpoint(
        model_config,
        micro_batch,
        dtype,
        available,
        caption_tokens=caption_tokens(loader),
        device=process.device,
        # Compiled blocks keep no less in selective mode.
        modes=[m for m in MODES if m != "selective" or config.model.compile != "blocks"],
    )
    line = (
        f"checkpoint: auto -> {mode} (activations {needed.peak / 1e9:.1f} GB of "
        f"{max(available, 0) / 1e9:.1f} GB free)"
    )
    if needed.peak > available > 0:
        fitting = int(micro_batch * available / needed.peak)
        line += f"; --micro-batch {largest_divisor(local_batch, max(1, fitting))} should fit"
    return ResolvedCheckpoint(mode, line)


@dataclass(frozen=True)
class StateBytes:
    """Bytes that a rank holds beside activations.

    Attributes:
        weights: that the model computes with.
        gradients: and their sums over micro-batches.
        optimizer: masters, remainders and Adam's statistics.
        passing: what comes and goes: the gradient in the optimizer's type while it steps, buckets
            on their way between ranks, what stage 3 gathers.
    """

    weights: int
    gradients: int
    optimizer: int
    passing: int = 0

    @property
    def total(self) -> int:
        """All of them at once."""
        return self.weights + self.gradients + self.optimizer + self.passing


def state_bytes(
    model: nn.Module,
    options: OptimizerConfig,
    dtype: torch.dtype,
    stage: int,
    ranks: int,
    sums: bool = False,
) -> StateBytes:
    """What a rank holds beside activations.

    Args:
        model: its parameters are counted, wherever they are.
        options: of the optimizer: statistics and weights of each tower.
        dtype: of weights and gradients.
        stage: of ZeRO.
        ranks: that share.
        sums: half-precision gradients of several micro-batches are summed in float32.
    """
    parameters = num_parameters(model)
    width = dtype.itemsize
    # What the optimizer is given; a copy beside the model's weights wherever DeepSpeed wraps it.
    given = dtype if optimizer_holds_masters(options, dtype, stage) else torch.float32
    copied = stage > 0 or given != dtype
    groups = parameter_groups(
        model, 0.0, image={"weights": options.image_weights}, text={"weights": options.text_weights}
    )
    optimizer = parameters * given.itemsize * copied + sum(
        parameter.numel()
        * state_bytes_per_parameter(DTYPES[options.stats], group["weights"], given)
        for group in groups
        for parameter in group["params"]
    )
    passing = parameters * given.itemsize * copied
    weights = gradients = parameters * width
    if stage:
        optimizer /= ranks
        passing /= ranks
        if sums:
            gradients += parameters * 4 / (ranks if stage > 1 else 1)
    if stage >= 2:
        gradients /= ranks
    if stage == 3:
        weights /= ranks
        # What is gathered for a forward lies beside the shares: at most the largest tensors.
        passing += 2 * width * max(p.numel() for p in model.parameters())
    if ranks > 1 and stage:
        passing += 2 * width * min(BUCKET, parameters)
    return StateBytes(*(round(count) for count in (weights, gradients, optimizer, passing)))


def free_bytes(process: Process) -> int:
    """Memory that this rank may still take: of its GPU, or its share of the node's."""
    if process.device.type == "cuda":
        return torch.cuda.mem_get_info(process.device)[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    table = dict(line.split(":") for line in lines)
    free = int(table["MemAvailable"].split()[0]) * 1024
    limit, used = (Path("/sys/fs/cgroup", f"memory.{name}") for name in ("max", "current"))
    if limit.is_file() and (text := limit.read_text().strip()) != "max":
        # Files that were read stay in the group's memory until something else wants it.
        statistics = dict(
            line.split() for line in Path(used.parent, "memory.stat").read_text().splitlines()
        )
        taken = int(used.read_text()) - int(statistics.get("inactive_file", 0))
        free = min(free, max(0, int(text) - taken))
    return free // process.local_world_size


def caption_tokens(loader: TrainLoader) -> int:
    """The mean length of some captions, start and end included, a tenth added: batches differ."""
    shards = np.unique(np.linspace(0, len(loader.shards) - 1, _SHARDS_SAMPLED).astype(int))
    captions = []
    for shard in shards.tolist():
        count = len(loader.reader.table(shard))
        rows = np.unique(np.linspace(0, count - 1, min(count, _CAPTIONS_OF_EACH)).astype(int))
        captions += [loader.reader.caption(shard, row) for row in rows.tolist()]
    lengths = tokenize_with_lengths(captions, loader.reader.context_length)[1]
    return min(loader.reader.context_length, int(np.ceil(1.1 * lengths.double().mean().item())))
