"""Tiles of attention pooling's Triton kernels, looked up by sizes; never tuned in a user's run.

Two rules, by the shared memory that a device grants a program.

Where it is much, half precision takes wide tiles. They were timed on one H200 at the RN50x64's
pool: N 196, C 4,096, H 64, B 256, bf16. A tile here is (heads, channels, warps); times are in ms.

    forward    (64, 64, 4) 0.54    (64, 64, 8) 0.71    (32, 64, 4) 0.78    (32, 32, 8) 1.79
    backward   (64, 64, 8) 0.83    (32, 64, 8) 1.21    (16, 64, 4) 1.48    (16, 32, 8) 3.83

Those on the left are taken: a sample's tokens then pass once per walk, not two to four times. They
spill 2 to 5 KB per thread, for the scores of 256 tokens and 64 heads do not fit in registers. They
are the fastest nonetheless. Chosen by analogy, not timed: N from 65 to 195, fp16, small batches,
the forward on sm_80, all of sm_100. Up to 64 tokens both rules give the same tile: the RN50's pool
(N 49, H 32, B 256, bf16) takes 0.108 ms forward, 0.098 ms backward, 0.058 ms for dx on that H200.

Elsewhere tiles are chosen from `ptxas -v`: no spilled register in half precision (in fp32 up to 128
tokens), and shared memory within what sm_86 grants, the least of those served.

tests/ops/test_attention_pool_triton.py holds registers, spills and shared memory to this.

Legend: B samples, N tokens, C channels, H heads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton

from clipfast.kernels.common.device import FUSED

MAX_TOKENS = 256  # scores of all tokens are one tile
# Shared memory of the widest forward and backward tile beside fp32 positions: what a device must
# grant a program. sm_90 grants 227 KiB, sm_80 163 KiB, sm_86, sm_89 and sm_120 99 KiB.
WIDE_FORWARD_BYTES, WIDE_BACKWARD_BYTES = 137 << 10, 169 << 10


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
            **FUSED,
        }


def attend_tile(
    tokens: int,
    heads: int,
    batch: int,
    dtype: torch.dtype,
    processors: int,
    shared_bytes: int,
    backward: bool,
) -> Tile:
    """The tile of the forward or the backward walk.

    Args:
        tokens: N, at most MAX_TOKENS.
        heads: H.
        batch: B.
        dtype: of x.
        processors: multiprocessors of the device. The more heads a program owns, the fewer times
            x passes from L2; but there should be a program for each processor.
        shared_bytes: shared memory that the device grants a program.
        backward: the backward walk holds two sets of weights.

    Returns:
        The tile.
    """
    if tokens > MAX_TOKENS:
        raise ValueError(f"expected at most {MAX_TOKENS} tokens, got {tokens}: use impl='plain'")
    block_n = max(16, triton.next_power_of_2(tokens))
    is_half = dtype.itemsize == 2
    needed = WIDE_BACKWARD_BYTES if backward else WIDE_FORWARD_BYTES
    is_wide = is_half and shared_bytes >= needed
    # Scores that a narrow tile's program holds in registers.
    most = (8192 if is_half else 2048) // (2 if backward else 1)
    block_h = 64
    while block_h > 16 and (
        block_h >= 2 * heads
        or (block_n * block_h > most and not is_wide)
        or batch * triton.cdiv(heads, block_h) < processors
    ):
        block_h //= 2
    if is_wide:
        block_c, num_warps = 64, 8 if backward and block_n * block_h > 4096 else 4
    else:
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
