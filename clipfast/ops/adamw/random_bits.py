"""The random bits that AdamW rounds with: the same whatever the grid, threads or partition."""

from __future__ import annotations

import torch
from torch import Tensor

DRAW = 8  # elements that one draw of Philox serves
# csrc/adamw/element.h says why so few.
ROUNDS = 7
PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
PHILOX_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
FIRST_MOMENT, SECOND_MOMENT, WEIGHT = range(3)
# One draw serves an element's three roundings: csrc/adamw/element.h says why and which.
MULTIPLIERS = (1, 0x1663, 0x2F8F)
WORD = 0xFFFFFFFF


def philox(
    first_element: int, numel: int, step: int, purpose: int, seed: int, device: torch.device
) -> Tensor:
    """The 16 random bits of each element: Philox4x32-7 keyed by the seed, then permuted.

    Args:
        first_element: index of element 0 among all of the optimizer's, a multiple of 8.
        numel: elements.
        step: t.
        purpose: FIRST_MOMENT, SECOND_MOMENT or WEIGHT.
        seed: any int64.
        device: of the result.

    Returns:
        [numel] int64 below 2^16.

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
    """
    first_draw = first_element // DRAW
    draw = torch.arange(first_draw, first_draw + -(-numel // DRAW), device=device)
    c0, c1 = draw & WORD, draw >> 32
    c2, c3 = torch.full_like(draw, step & WORD), torch.zeros_like(draw)
    k0, k1 = seed & WORD, (seed >> 32) & WORD
    (m0, m1), (s0, s1) = PHILOX_MULTIPLIERS, PHILOX_KEY_STEPS
    for _ in range(ROUNDS):
        p0, p1 = m0 * c0, m1 * c2  # modulo 2^64, in two's complement
        c0, c2 = (p1 >> 32 & WORD) ^ c1 ^ k0, (p0 >> 32 & WORD) ^ c3 ^ k1
        c1, c3 = p1 & WORD, p0 & WORD
        k0, k1 = (k0 + s0) & WORD, (k1 + s1) & WORD
    words = torch.stack([c0, c1, c2, c3], dim=1)
    bits = torch.stack([words & 0xFFFF, words >> 16], dim=2).reshape(-1)[:numel]
    return bits * MULTIPLIERS[purpose] & 0xFFFF
