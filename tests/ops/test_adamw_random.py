"""The random bits that AdamW rounds with."""

import itertools

import torch
from torch import Tensor

from clipfast.ops import adamw


def test_adamw_random_bits_depend_on_element_step_seed_and_purpose():
    def bits(first=0, step=1, purpose=0, seed=0) -> Tensor:
        return adamw.philox(first, 4096, step, purpose, seed, torch.device("cpu"))

    for other in (bits(first=8), bits(step=2), bits(purpose=1), bits(seed=1), bits(seed=2**32)):
        assert (bits() == other).float().mean() < 0.01
    assert torch.equal(bits(first=8)[:-8], bits()[8:])


def test_adamw_roundings_of_one_element_are_spread_evenly_together():
    first = adamw.philox(0, 1 << 16, 1, 0, 0, torch.device("cpu"))
    factors = torch.tensor(adamw.MULTIPLIERS)
    for a, b in itertools.combinations(factors.tolist(), 2):
        # The smallest distance between two of the 2^16 pairs, each at its place in a square.
        r = torch.arange(1, 1 << 16)
        sides = [(r * factor + (1 << 15)) % (1 << 16) - (1 << 15) for factor in (a, b)]
        assert torch.stack(sides).double().norm(dim=0).min() > 266
    both = torch.stack([first * factor % (1 << 16) >> 13 for factor in factors])
    cells = (both[0] * 64 + both[1] * 8 + both[2]).bincount(minlength=512)
    # 128 a cell: the square of the deviation is that of a Poisson number, or less.
    assert (cells.double() - 128).square().mean() < 1.2 * 128


def test_adamw_random_bits_are_philox():
    # The known answer of Random123 for seven rounds and a counter and a key of zeros.
    words = [0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48]
    expected = [half for word in words for half in (word & 0xFFFF, word >> 16)]
    assert adamw.philox(0, 8, 0, 0, 0, torch.device("cpu")).tolist() == expected
