"""Crops on their way to a tower: bytes as they are kept, and numbers as a tower reads them."""

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from clipfast.preprocessing import MEAN, STD


def normalised(
    crops: Tensor,
    dtype: torch.dtype,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> Tensor:
    """What a tower reads of crops, ``(crops / 255 - mean) / std`` by channel.

    Computed in float32 and rounded once, so that the same bytes are the same numbers whenever they
    are asked for. Nothing waits for a GPU.

    Args:
        crops: ``[B, S, S, 3]`` uint8, contiguous.
        dtype: of the result: float32, float16 or bfloat16.
        mean: of 3 channels, for pixels in [0, 1].
        std: of 3 channels, for pixels in [0, 1].

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
    shift, scale = _per_row(shape[2], crops.device, tuple(mean), tuple(std))
    torch.addcmul(shift, pixels, scale, out=pixels)
    return pixels.to(dtype).view(shape).permute(0, 3, 1, 2)


@functools.cache
def _per_row(
    size: int, device: torch.device, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """What makes bytes x a row of normalised pixels, shift + x * scale: each ``[3 S]``."""
    shift = [-middle / deviation for middle, deviation in zip(mean, std, strict=True)]
    scale = [1 / (255 * deviation) for deviation in std]
    both = torch.tensor([shift, scale], device=device).repeat(1, size)
    return both[0], both[1]
