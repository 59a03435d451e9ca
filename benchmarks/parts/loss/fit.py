"""Whether a contender of ``loss_throughput.py`` fits into memory."""

from __future__ import annotations

import os

import torch

from benchmarks.parts.common.contest import NotMeasured
from benchmarks.parts.loss.peers import Contender
from benchmarks.parts.loss.problem import Case


def free_bytes(device: torch.device) -> int | None:
    """Memory that can still be taken, or None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def require_memory(contender: Contender, case: Case) -> None:
    """Refuse what would not fit: a CPU has no out-of-memory error to catch."""
    free = free_bytes(case.device)
    needed = contender.logit_bytes * case.local_batch * case.batch
    if free is not None and needed * case.world_size > free and case.device.type == "cpu":
        raise NotMeasured(
            f"needs about {needed * case.world_size / 2**30:.0f} GiB, {free / 2**30:.0f} are free"
        )
