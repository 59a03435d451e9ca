"""Resized squares: the public operator, and what it must equal.

    out[y, x, c] = (round(sum_r sum_s v[y, r] h[x, s] image[r, s, c]) / 255 - mean[c]) / std[c]

v and h hold the weights of a cubic filter that is as wide as the picture shrinks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clipfast.ops.registry import available_impls
from clipfast.ops.resize import plain
from clipfast.ops.resize.declaration import resize_operator


def is_compiled() -> bool:
    """Whether the compiled form serves on the CPU; plain torch takes 20 times as long."""
    return available_impls("resize_crops_", "cpu")[0] == "cpu"


def reference(image: Tensor, box: Sequence[float], size: int) -> Tensor:
    """One square before it is rounded, in float64: the truth in tests.

    Args:
        image: [H, W, 3] uint8.
        box: top, left and side of the square, pixels.
        size: S, pixels.

    Returns:
        [S, S, 3] float64, in units of uint8.
    """
    return plain.resize_one(image, box, size, torch.float64)


def resize_crops(
    images: Sequence[Tensor],
    boxes: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    out: Tensor,
) -> Tensor:
    """Cut a square from each picture, resize it with a cubic antialiasing filter, normalise it.

    Equal, up to Pillow's rounding between the two passes, to

        image.resize((S, S), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))

    then ``(pixels / 255 - mean) / std``. Runs on the calling thread and frees Python's lock.

    Args:
        images: N pictures [H, W, 3] uint8 on the CPU, contiguous, of any sizes.
        boxes: [N, 3] float64: top, left and side of the squares, pixels.
        mean: of 3 channels, for pixels in [0, 1].
        std: of 3 channels, for pixels in [0, 1].
        out: [N, S, S, 3] float32, contiguous; written.

    Returns:
        `out`.

    Raises:
        RuntimeError: an argument has another shape or type, or a square lies outside its picture.

    Source: Keys 1981; the window and its normalisation are Pillow's.
    """
    resize_operator(images, boxes, mean, std, out)
    return out
