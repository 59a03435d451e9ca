"""Resized squares in plain torch: two products of a picture with matrices of weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def cubic(x: Tensor) -> Tensor:
    """Keys' cubic filter with a = -1/2.

    Args:
        x: distances, any shape.

    Returns:
        Weights, shape and dtype of x; 0 from a distance of 2 on.
    """
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def weights(start: float, side: float, inputs: int, size: int, dtype: torch.dtype) -> Tensor:
    """How much each input counts for each output, along one axis.

    Args:
        start: where the square begins, pixels.
        side: of the square, pixels.
        inputs: length of the axis.
        size: S, number of outputs.
        dtype: of the result.

    Returns:
        [S, inputs], rows of sum 1.
    """
    step = side / size
    stretch = max(step, 1.0)
    centers = start + (torch.arange(size, dtype=torch.float64) + 0.5) * step
    places = torch.arange(inputs, dtype=torch.float64) + 0.5
    table = cubic((places - centers[:, None]) / stretch)
    # The window is whole pixels around the center, as Pillow has it.
    inside = (places - 0.5 >= (centers[:, None] - 2 * stretch + 0.5).floor()) & (
        places - 0.5 < (centers[:, None] + 2 * stretch + 0.5).floor()
    )
    table = table * inside
    return (table / table.sum(1, keepdim=True)).to(dtype)


def resize_one(
    image: Tensor, box: Sequence[float], size: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """One square, resized and not yet rounded.

    Args:
        image: [H, W, 3] uint8.
        box: top, left and side of the square, pixels.
        size: S, pixels.
        dtype: of the arithmetic.

    Returns:
        [S, S, 3] dtype, in units of uint8.
    """
    top, left, side = box
    height, width, _ = image.shape
    rows = weights(top, side, height, size, dtype).to(image.device)
    columns = weights(left, side, width, size, dtype).to(image.device)
    return torch.einsum("yr,rsc,xs->yxc", rows, image.to(dtype), columns)


def resize_crops(
    images: Sequence[Tensor],
    boxes: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    out: Tensor,
) -> None:
    """The operator in plain torch; arguments as of ``clipfast.ops.resize.resize_crops``."""
    offset, factor = (out.new_tensor(values) for values in (mean, std))
    for i, (image, box) in enumerate(zip(images, boxes.tolist(), strict=True)):
        rounded = resize_one(image, box, out.shape[1]).round().clamp(0, 255)
        out[i] = (rounded / 255 - offset) / factor
