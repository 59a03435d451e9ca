"""What the host asks of a GPU, or gives it, without waiting for it."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PlannedGpu:
    """What decisions ask of a GPU, told of one that need not be here.

    Attributes:
        name: for a person.
        capability: its compute capability.
        memory: in bytes, as the driver reports it.
    """

    name: str
    capability: tuple[int, int]
    memory: int


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; the host goes on at once.

    What lies in pageable memory is first copied into pinned memory, which torch does not give out
    again before the device has read it. Without that a copy to a GPU of more than 64 KiB may wait
    for all the work that was launched before it, whatever ``non_blocking`` says.

    Args:
        tensor: anywhere.
        device: where it is wanted.

    Returns:
        The tensor itself where it is there already.
    """
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=device.type == "cuda")


def is_capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is under capture: what is launched now is repeated in every replay.

    Args:
        device: where the tensors are.
    """
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
