"""What a launch asks of the device and of torch."""

from __future__ import annotations

from typing import Any

import torch

# What every launch says: from Triton 3.10 on, a product and a sum are else two instructions, each
# rounded, which takes products of fp32 in full twice as long and changes the bits of every kernel.
FUSED = {"enable_fp_fusion": True}


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


def multiplies_in_full() -> bool:
    """Whether torch's own switch has fp32 matrices multiplied as fp32 on a GPU, and not as TF32.

    Any of its spellings counts: `torch.set_float32_matmul_precision`, `allow_tf32` and
    `fp32_precision` of `torch.backends.cuda.matmul`, and `torch.backends.fp32_precision`.
    """
    matmul: Any = torch.backends.cuda.matmul
    # From torch 2.9 on the older questions raise where the newer switch was set.
    precision = getattr(matmul, "fp32_precision", None)
    return not matmul.allow_tf32 if precision is None else precision != "tf32"


def dot_precision(dtype: torch.dtype) -> str:
    """How `tl.dot` multiplies: torch's own switch decides, as for the library's products.

    TF32 keeps 11 bits of an operand, fp32 24. Three TF32 products ("tf32x3") keep 22, and tensor
    cores cut sums where fp32 rounds them: they are not what "ieee" promises.

    Args:
        dtype: of the operands. Only fp32 has a choice.

    Returns:
        "ieee" or "tf32".
    """
    return "ieee" if dtype != torch.float32 or multiplies_in_full() else "tf32"
