"""Tiles of attention pooling's Triton kernels, looked up by sizes; never tuned in a user's run.

Not measured on a GPU. Tile shapes are chosen from `ptxas -v`: no spilled register in half precision
(in fp32 up to 128 tokens), and shared memory within what sm_86 grants, the least of those served.
tests/ops/test_attention_pool_triton.py keeps it so.

Legend: B samples, N tokens, C channels, H heads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton

MAX_TOKENS = 256  # scores of all tokens are one tile


class Tile(NamedTuple):
    """Tokens, heads and channels of a program, and the warps that work on them."""

    block_n: int
    block_h: int
    block_c: int
    num_warps: int
    num_stages: int

    def options(self) -> dict[str, int]:
        """The launch's keyword arguments."""
        return {
            "BLOCK_N": self.block_n,
            "BLOCK_H": self.block_h,
            "BLOCK_C": self.block_c,
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
        }


def attend_tile(
    tokens: int, heads: int, batch: int, dtype: torch.dtype, processors: int, backward: bool
) -> Tile:
    """The tile of the forward or the backward walk.

    Args:
        tokens: N, at most MAX_TOKENS.
        heads: H.
        batch: B.
        dtype: of x.
        processors: multiprocessors of the device. The more heads a program owns, the fewer times
            x passes from L2; but there should be a program for each processor.
        backward: the backward walk holds two sets of weights.

    Returns:
        The tile.
    """
    if tokens > MAX_TOKENS:
        raise ValueError(f"expected at most {MAX_TOKENS} tokens, got {tokens}: use impl='plain'")
    block_n = max(16, triton.next_power_of_2(tokens))
    is_half = dtype.itemsize == 2
    most = (8192 if is_half else 2048) // (2 if backward else 1)  # scores that a program holds
    block_h = 64
    while block_h > 16 and (
        block_h >= 2 * heads
        or block_n * block_h > most
        or batch * triton.cdiv(heads, block_h) < processors
    ):
        block_h //= 2
    block_c = max(16, min(64 if is_half else 32, (8192 if is_half else 2048) // block_n))
    num_warps = 4 if block_n <= 64 else 8
    # Three tiles in flight where that stays within the 99 KiB that sm_86 and sm_89 grant.
    return Tile(block_n, block_h, block_c, num_warps, 3 if block_n <= 64 else 2)


def grad_tokens_tile(tokens: int, heads: int, dtype: torch.dtype) -> Tile:
    """The tile of the kernel that writes dx; arguments as for `attend_tile`."""
    is_half = dtype.itemsize == 2
    block_n = max(16, min(64 if is_half else 32, triton.next_power_of_2(tokens)))
    block_h = max(16, triton.next_power_of_2(heads))
    return Tile(block_n, block_h, 64 if is_half else 32, 4 if is_half else 8, 2)
