"""Crops on their way to a tower: bytes as they are kept, and numbers as a tower reads them."""

import functools

import numpy as np
import torch
from torch import Tensor

from clipfast.preprocessing import MEAN, STD


def normalised(crops: Tensor, dtype: torch.dtype) -> Tensor:
    """What a tower reads of crops, ``(crops / 255 - mean) / std`` by channel.

    Computed in float32 and rounded once, so that the same bytes are the same numbers whenever they
    are asked for. Nothing waits for a GPU.

    Args:
        crops: ``[B, S, S, 3]`` uint8, contiguous.
        dtype: of the result: float32, float16 or bfloat16.

    Returns:
        ``[B, 3, S, S]`` in channels_last, on the same device.
    """
    shape = crops.shape
    # Whole rows of pixels: with three numbers at a time the factors would cost five times as much.
    rows = crops.view(*shape[:2], -1)
    if crops.device.type == "cpu":
        # numpy asks for huge pages: in pages of 4 KB the first touch costs more than the rest.
        pixels = torch.from_numpy(np.empty(rows.shape, np.float32)).copy_(rows)
    else:
        pixels = rows.to(torch.float32)
    shift, scale = _per_row(shape[2], crops.device)
    torch.addcmul(shift, pixels, scale, out=pixels)
    return pixels.to(dtype).view(shape).permute(0, 3, 1, 2)


@functools.cache
def _per_row(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """What makes bytes x a row of normalised pixels, shift + x * scale: each ``[3 S]``."""
    shift = [-mean / deviation for mean, deviation in zip(MEAN, STD, strict=True)]
    scale = [1 / (255 * deviation) for deviation in STD]
    both = torch.tensor([shift, scale], device=device).repeat(1, size)
    return both[0], both[1]
