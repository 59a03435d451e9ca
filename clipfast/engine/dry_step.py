"""Whether a micro-batch fits, tried: the towers' forward and backward passes without a run.

A model of the run's shape is made for it, with zeros for weights, and is gone afterwards. So
nothing of a run is touched: no weight, no statistic, no random number, no counter of DeepSpeed's.
What the optimizer and DeepSpeed will hold is allocated beside it on a GPU, and added to the peak on
a CPU.
"""

import gc
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
import torch.distributed as dist

from clipfast.engine.plan import RunPlan
from clipfast.engine.rank_bytes import rank_bytes
from clipfast.models import CLIP
from clipfast.models.compile import compile_blocks
from clipfast.models.recompute import Recompute


def fits_when_tried(plan: RunPlan, available: int, caption_tokens: int) -> bool:
    """Run one micro-batch, or as many as keep their graphs, forward and backward. A collective.

    Args:
        plan: of the run, with nothing left to decide.
        available: bytes that a rank may take in all.
        caption_tokens: of every caption, start and end included.

    Returns:
        Whether every rank had the memory.
    """
    mine = True
    try:
        if plan.process.device.type == "cuda":
            _step(plan, caption_tokens)
        else:
            mine = _peak_of(plan, caption_tokens) <= available
    except torch.OutOfMemoryError:
        mine = False
    gc.collect()
    if plan.process.device.type == "cuda":
        torch.cuda.empty_cache()
    shared = torch.tensor(int(mine), device=plan.process.device)
    dist.all_reduce(shared, op=dist.ReduceOp.MIN)
    return bool(shared.item())


def _step(plan: RunPlan, tokens: int) -> int:
    """The passes.

    Returns:
        Bytes that a run holds and that were not touched here.
    """
    device, needed = plan.process.device, rank_bytes(plan, tokens)
    with torch.device("meta"):
        model = CLIP(replace(plan.architecture, recompute=cast(Recompute, plan.recompute))).to(
            plan.dtype
        )
    model.to_empty(device=device)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()
    if plan.compile:
        compile_blocks(model)
    own = 2 * sum(p.nbytes for p in model.parameters())
    beside = max(0, needed.states.total - own) + needed.features + needed.decoder
    held = torch.empty(beside, dtype=torch.uint8, device=device)
    size = plan.architecture.vision.image_size
    kept = []
    for _ in range(max(1, plan.keep_graphs or 0)):
        images = torch.zeros(plan.micro_batch, 3, size, size, dtype=plan.dtype, device=device)
        images = images.contiguous(memory_format=torch.channels_last)
        # Without a text tower the other side of a pair is an image too.
        captions = torch.zeros_like(images)
        if plan.architecture.text:
            captions = torch.zeros(plan.micro_batch, tokens, dtype=torch.int64, device=device)
        lengths = torch.full((plan.micro_batch,), tokens)
        kept.append(model(images, captions, lengths=lengths))
        del images, captions
    loss = torch.empty(needed.loss, dtype=torch.uint8, device=device)
    if plan.micro_batches > 1:
        del loss
    while kept:
        image_features, text_features, *_ = kept.pop(0)
        (image_features.float().sum() + text_features.float().sum()).backward()
        del image_features, text_features
    del held
    return beside + (needed.loss if plan.micro_batches == 1 else 0)


def _peak_of(plan: RunPlan, tokens: int) -> int:
    """What the process took more than before, and what was not touched."""
    gc.collect()
    with suppress(OSError):
        # From here on the peak is counted anew.
        Path("/proc/self/clear_refs").write_text("5")
    before = _memory("VmRSS")
    untouched = _step(plan, tokens)
    return max(0, _memory("VmHWM") - before) + untouched


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
