"""Waves: strips of rows small enough for the workspace, and the partial results of one.

Kernels see a wave as a problem of its own, with its rows' slices and its own first column. Legend:
B rows, G columns, T tiles along the other dimension.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton

from clipfast.kernels.contrastive.configs import Config


def waves(rows: int, most: int, tile: int) -> Iterator[tuple[int, int]]:
    """Row ranges of about equal length and whole tiles.

    Args:
        rows: B.
        most: rows of a wave at most; one tile at least is taken.
        tile: rows of a tile.

    Yields:
        (begin, end) of each wave.
    """
    most = max(tile, most // tile * tile)
    step = triton.cdiv(triton.cdiv(rows, triton.cdiv(rows, most)), tile) * tile
    for begin in range(0, rows, step):
        yield begin, min(begin + step, rows)


def partial_waves(
    rows: int, columns: int, config: Config, planes: int, workspace_bytes: int
) -> Iterator[tuple[int, int]]:
    """Waves whose partial results fit the workspace; one tile of rows at least.

    Args:
        rows: B.
        columns: G.
        config: the tile.
        planes: numbers kept per tile and row.
        workspace_bytes: limit of the partial results' memory.

    Yields:
        (begin, end) of each wave.
    """
    tile_bytes = 4 * planes * (triton.cdiv(columns, config.block_g) * config.block_b + columns)
    yield from waves(rows, workspace_bytes // tile_bytes * config.block_b, config.block_b)


def partials(
    like: torch.Tensor, rows: int, columns: int, config: Config, planes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Uninitialised partial results of a wave.

    Args:
        like: names the device.
        rows: of the wave.
        columns: G.
        config: the tile.
        planes: numbers kept per tile and row.

    Returns:
        Along rows [planes, T, rows] and along columns [planes, T, G], fp32.
    """
    row_tiles = triton.cdiv(rows, config.block_b)
    column_tiles = triton.cdiv(columns, config.block_g)
    return (
        like.new_empty((planes, column_tiles, rows), dtype=torch.float32),
        like.new_empty((planes, row_tiles, columns), dtype=torch.float32),
    )
