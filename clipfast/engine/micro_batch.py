"""How many pairs a rank encodes at a time under ``--micro-batch auto``, and which graphs it keeps.

Every combination gives the same gradients, to rounding, and is judged by the FLOP that it adds to
the three forward passes that a forward and a backward cost:

    recomputation     none 0, selective up to 4/17 of a forward pass (of a ResNet), full 1
    micro-batches     1 for those that are encoded twice, by their share of the batch

So the whole batch without recomputation comes first; then the whole batch with less kept, or the
largest micro-batches that fit with graphs kept, whichever adds less; of equals the larger batch.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.distributed as dist

from clipfast.data.batch import TrainingData
from clipfast.engine.config import ConfigError, largest_divisor
from clipfast.engine.differences import WITH_CHANGES
from clipfast.engine.dry_step import fits_when_tried
from clipfast.engine.launch import Process
from clipfast.engine.plan import RunPlan
from clipfast.engine.rank_bytes import largest_micro_batch, rank_bytes
from clipfast.engine.recomputation import MARGIN, SLACK, free_bytes, resolve_recomputation
from clipfast.models.activations import activation_bytes

_RECOMPUTED = {"none": 0.0, "selective": 4 / 17, "full": 1.0}


def resolve_memory(
    plan: RunPlan,
    loader: TrainingData,
    remembered: int | None = None,
    free: Callable[[Process], int] = free_bytes,
) -> RunPlan:
    """Decide what depends on the memory that is free: recomputation, micro-batch, kept graphs. A
    collective where one of them is ``auto``: every rank decides for the one with the least memory.

    Called before the model is built, so that none of the memory counted here is taken yet.

    Args:
        plan: of the run, its process group started.
        loader: of the training data; it knows how long captions are.
        remembered: the micro-batch of the run that goes on. A ResNet's batch statistics are those
            of a micro-batch, so it is kept where it divides a rank's share.
        free: memory that a rank may take.

    Returns:
        The plan with nothing left to decide; its notes say what was found.
    """
    asked = plan.config
    searches = plan.searches_micro_batch
    if searches and remembered and plan.local_batch % remembered == 0:
        plan = plan.with_micro_batch(remembered)
        note = f"micro-batch: auto -> {plan.micro_batch}, as the run had it"
        plan = replace(plan, micro_batch_note=note)
    if plan.searches_micro_batch:
        available, tokens = _available(plan, free), loader.caption_tokens()
        found = _tried(_cheapest(plan, available, tokens), available, tokens)
        return replace(found, config=asked)
    plan = resolve_recomputation(plan, loader, free)
    if plan.keep_graphs is None:
        kept = _kept(plan, _available(plan, free), loader.caption_tokens())
        plan = replace(plan, keep_graphs=kept)
    if searches and not fits_when_tried(plan, _available(plan, free), loader.caption_tokens()):
        raise ConfigError(
            f"--micro-batch auto: the run that goes on had {plan.micro_batch} pairs at a time, and "
            "they do not fit into the memory that is free here. Pass --model.recompute auto, or a "
            f"smaller --micro-batch and {WITH_CHANGES}: a ResNet's batch statistics are then others"
        )
    return replace(plan, config=asked)


def _available(plan: RunPlan, free: Callable[[Process], int]) -> int:
    """Bytes that the rank with the least memory may take in all."""
    mine = int((free(plan.process) - SLACK) * (1 - MARGIN))
    shared = torch.tensor(mine, dtype=torch.int64, device=plan.process.device)
    dist.all_reduce(shared, op=dist.ReduceOp.MIN)
    return int(shared.item())


def _tried(plan: RunPlan, available: int, tokens: int) -> RunPlan:
    """The plan, or the next smaller one that fits when it is tried."""
    found = plan
    while not fits_when_tried(found, available, tokens):
        if found.keep_graphs:
            found = replace(found, keep_graphs=found.keep_graphs // 2)
        elif found.micro_batch == 1:
            break
        else:
            smaller = largest_divisor(found.local_batch, found.micro_batch - 1)
            found = replace(found.with_micro_batch(smaller), keep_graphs=0)
    if found is plan:
        return plan
    cut = f"{found.micro_batch}, with {found.keep_graphs} graphs kept"
    note = f"{plan.micro_batch_note}; tried, that did not fit: {cut}"
    return replace(found, micro_batch_note=note)


def _cheapest(plan: RunPlan, available: int, tokens: int) -> RunPlan:
    best: tuple[float, int] | None = None
    for candidate in plan.recompute_candidates():
        extra = _RECOMPUTED[candidate.recompute]
        if best is not None and best[0] <= extra:
            break
        size = largest_micro_batch(candidate, available, tokens)
        if size is None:
            continue
        made = candidate.with_micro_batch(size)
        kept = made.keep_graphs
        if kept is None:
            kept = _kept(made, available, tokens)
        if made.micro_batches > 1:
            extra += 1 - kept / made.micro_batches
        if best is None or (extra, -size) < best:
            best = (extra, -size)
            chosen = replace(made, keep_graphs=kept)
    gigabytes = f"of {max(available, 0) / 1e9:.1f} GB free"
    if best is None:
        last = plan.recompute_candidates()[-1].with_micro_batch(1)
        needed = rank_bytes(last, tokens).total / 1e9
        note = f"micro-batch: auto -> 1, though it takes {needed:.1f} GB {gigabytes}"
        return replace(last, keep_graphs=0, micro_batch_note=note)
    needed = rank_bytes(chosen, tokens).total / 1e9
    note = (
        f"micro-batch: auto -> {chosen.micro_batch} of {chosen.local_batch}, recompute "
        f"{chosen.recompute} ({needed:.1f} GB {gigabytes}"
    )
    if chosen.micro_batches > 1:
        note += f"; {chosen.keep_graphs} of {chosen.micro_batches} graphs kept"
    return replace(chosen, micro_batch_note=f"{note})")


def _kept(plan: RunPlan, available: int, tokens: int) -> int:
    """Graphs that fit beside the loss, and beside the peak of the backward pass of one of them."""
    if plan.micro_batches == 1 or plan.stage == 3:
        return 0
    needed = rank_bytes(plan, tokens)
    counted = activation_bytes(
        plan.architecture,
        plan.micro_batch,
        plan.dtype,
        plan.recompute,
        caption_tokens=tokens,
        device=plan.process.counted_on,
    )
    # A kept graph holds its images too.
    each = counted.kept + needed.images
    others = needed.total - needed.passing + needed.features
    beside = max(needed.loss, counted.peak - counted.kept)
    return max(0, min(plan.micro_batches, (available - others - beside) // each))
