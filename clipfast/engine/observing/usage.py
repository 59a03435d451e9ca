"""Memory of this process, on the host and on its device."""

import os
from pathlib import Path

import torch

_GB = 1e9


def memory_figures(device: torch.device) -> dict[str, float]:
    """Gigabytes (1e9 bytes): resident on the host; on a GPU given out at most, and reserved.

    Args:
        device: of this rank.
    """
    figures = {"memory/host": _resident() / _GB}
    if device.type == "cuda":
        figures["memory/device"] = torch.cuda.max_memory_allocated(device) / _GB
        figures["memory/device_reserved"] = torch.cuda.max_memory_reserved(device) / _GB
    return figures


def _resident() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
