"""Learned positions of an image grid, interpolated to a grid of another size."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def resize_grid(positions: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Interpolate positions to another square grid (bicubic, anti-aliased).

    Args:
        positions: [1 + g^2, C]; the first row has no place in the grid and is kept.
        shape: [1 + h^2, C], what is wanted.

    Returns:
        [1 + h^2, C], the type of `positions`; `positions` itself where the grids are equal, are no
        squares, or the widths differ.
    """
    if positions.ndim != 2 or len(shape) != 2 or positions.shape[1] != shape[1]:
        return positions
    old, new = (round(max(rows - 1, 0) ** 0.5) for rows in (positions.shape[0], shape[0]))
    is_square = (old * old + 1, new * new + 1) == (positions.shape[0], shape[0])
    if old == new or not is_square or 0 in (old, new):
        return positions
    wide = positions.to(torch.promote_types(positions.dtype, torch.float32))
    grid = wide[1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", antialias=True)
    grid = grid.permute(0, 2, 3, 1).reshape(new * new, -1)
    return torch.cat([wide[:1], grid]).to(positions.dtype)
