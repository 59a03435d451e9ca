"""What a launch asks of the device and of torch."""

from __future__ import annotations

from typing import Any

import torch


def processors(device: torch.device, interpreted: int) -> int:
    """The GPU's multiprocessors.

    Args:
        device: where the kernel runs.
        interpreted: the number that stands for them where Triton interprets.

    Returns:
        Their count.
    """
    if device.type != "cuda":
        return interpreted
    return torch.cuda.get_device_properties(device).multi_processor_count


def shared_bytes(device: torch.device, interpreted: int) -> int:
    """The shared memory that the GPU grants one program.

    Args:
        device: where the kernel runs.
        interpreted: the number that stands for it where Triton interprets.

    Returns:
        Bytes.
    """
    if device.type != "cuda":
        return interpreted
    properties: Any = torch.cuda.get_device_properties(device)  # torch's type hints lack this one
    return properties.shared_memory_per_block_optin


def dot_precision(dtype: torch.dtype) -> str:
    """How `tl.dot` multiplies: torch's own switch decides, as for the library's products.

    Args:
        dtype: of the operands. Only fp32 has a choice.

    Returns:
        "ieee" or "tf32".
    """
    is_exact = dtype != torch.float32 or torch.get_float32_matmul_precision() == "highest"
    return "ieee" if is_exact else "tf32"
