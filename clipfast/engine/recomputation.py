"""Which mode of recomputation a run can afford: the memory that is free against what its model,
optimizer and activations need."""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from clipfast.data.batch import TrainingData
from clipfast.engine.config import largest_divisor
from clipfast.engine.launch import Process
from clipfast.engine.plan import RunPlan
from clipfast.engine.state_bytes import state_bytes
from clipfast.models import CLIP
from clipfast.models.activations import ActivationBytes, activation_bytes

# Left free for what is not counted: workspaces, decoded images.
MARGIN, SLACK = 0.1, 500_000_000
# What a compiled bottleneck keeps, by what it keeps uncompiled: counted by saved tensors.
COMPILED_GROWTH = 1.15

# Of what a step makes and lets go on a CPU, what glibc's heap grows beyond it: freed blocks lie
# between those in use and are too small for the next one. Taken from RN-tiny and ViT-tiny on one
# rank, 0.50 and 0.34; see docs/planning.md.
HOLES = 0.4

Count = Callable[[RunPlan, int], int]
"""(plan, tokens of every caption) -> bytes of activations at their peak."""


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


def resolve_recomputation(
    plan: RunPlan, loader: TrainingData, free: Callable[[Process], int] = free_bytes
) -> RunPlan:
    """Turn ``auto`` into the fastest mode that fits on every rank. A collective in that case.

    Called before the model is built, so that none of the memory counted here is taken yet.

    Args:
        plan: of the run, its process group started.
        loader: of the training data; it knows how long captions are.
        free: memory that a rank may take.

    Returns:
        The plan with a mode that is not ``auto``.
    """
    if plan.recompute != "auto":
        return plan
    return fastest_that_fits(plan, _available(plan, free), loader.caption_tokens())


def activation_peak(plan: RunPlan, caption_tokens: int) -> int:
    """Bytes of activations of one micro-batch at their peak, beside all gradients.

    Args:
        plan: of the run, its mode of recomputation known.
        caption_tokens: of every caption, start and end included.
    """
    counted = activation_bytes(
        plan.architecture,
        plan.micro_batch,
        plan.dtype,
        plan.recompute,
        caption_tokens=caption_tokens,
        device=plan.process.counted_on,
    )
    peak = peak_beside_gradients(plan, counted)
    return int(peak * COMPILED_GROWTH) if plan.compile else peak


def peak_beside_gradients(plan: RunPlan, counted: ActivationBytes) -> int:
    """What activations add to a rank that has room for all gradients.

    On a CPU a step's gradients take the place of activations that are gone. On a GPU, where no run
    was compared, the whole of both is counted; and so it is where gradients stay from one
    micro-batch to the next, or are passed on as they come.

    Args:
        plan: of the run.
        counted: of its micro-batch.
    """
    replaces = has_holes(plan) and plan.micro_batches == 1 and plan.stage < 2
    return counted.peak - counted.overlap * replaces


def has_holes(plan: RunPlan) -> bool:
    """Whether the run's memory is a heap of the CPU's."""
    return plan.process.device.type == "cpu" and plan.process.planned is None


def fastest_that_fits(
    plan: RunPlan, available: int, caption_tokens: int, count: Count = activation_peak
) -> RunPlan:
    """The plan in the fastest mode of recomputation whose activations fit.

    Args:
        plan: of the run; one with a mode already is taken as it is.
        available: bytes for activations.
        caption_tokens: of every caption, start and end included.
        count: of activations.

    Returns:
        A plan with a mode that is not ``auto``: the smallest one where nothing fits. Its note says
        how it was found.
    """
    if plan.recompute != "auto":
        return plan
    for found in plan.recompute_candidates():
        needed = count(found, caption_tokens)
        if needed <= available:
            break
    note = (
        f"recompute: auto -> {found.recompute} (activations {needed / 1e9:.1f} GB of "
        f"{max(available, 0) / 1e9:.1f} GB free)"
    )
    if needed > available > 0:
        fitting = max(1, int(plan.micro_batch * available / needed))
        note += f"; --micro-batch {largest_divisor(plan.local_batch, fitting)} should fit"
    return plan.with_recompute(found.recompute, note)


def _available(plan: RunPlan, free: Callable[[Process], int]) -> int:
    """Bytes for activations on the rank that has the fewest."""
    with torch.device("meta"):
        model = CLIP(plan.architecture)
    states = state_bytes(plan, model)
    loss = 0
    if plan.micro_batches == 1:
        loss = plan.objective.peak_bytes(
            plan.local_batch,
            plan.config.batch_size,
            plan.architecture.embed_dim,
            plan.dtype,
            plan.process.device,
        )
    available = int((free(plan.process) - SLACK) * (1 - MARGIN)) - states.total - loss
    if has_holes(plan):
        holes = HOLES * (states.gradients + states.passing + loss)
        available = int((available - holes) / (1 + HOLES))
    shared = torch.tensor(available, dtype=torch.int64, device=plan.process.device)
    dist.all_reduce(shared, op=dist.ReduceOp.MIN)
    return int(shared.item())
