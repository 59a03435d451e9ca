"""AdamW's formats: encode and decode, split and join, and the plain form's one rounding."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from clipfast.ops.adamw import BLOCK, decode, encode, join_master, plain, split_master
from tests.ops.adamw_cases import TYPES


@pytest.mark.parametrize("dtype", TYPES)
def test_encode_decode_shape_strides_and_error(dtype):
    for shape in ((3, 4, 5, 6), (1,), (255,), (257,), (0,), (7, 11)):
        x = torch.randn(shape) * 10.0 ** torch.randint(-4, 1, shape)
        if x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        code, exponents = encode(x, dtype)
        assert (code.dtype, code.shape, code.stride()) == (dtype, x.shape, x.stride())
        back = decode(code, exponents)
        assert (back.dtype, back.stride()) == (torch.float32, x.stride())
        if dtype == torch.float16:
            assert exponents.shape == (-(-x.numel() // BLOCK),)
        else:
            assert exponents is None
        if x.numel():
            largest = x.abs().max() if dtype == torch.float16 else 0.0
            step = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps / 2
            assert ((back - x).abs() <= step * x.abs() + largest * 2**-37).all()


def test_encode_of_extremes():
    for value in (3e38, 1e-38, 1e-45, 0.0, -(2.0**-126), 2.0**127):
        x = torch.full((300,), value)
        back = decode(*encode(x, torch.float16))
        assert (back - x).abs().max() <= abs(value) * 2**-11 + 2.0**-149
    code, exponents = encode(torch.tensor([1.0, float("inf")]), torch.float16)
    assert code.tolist() == [0.0, float("inf")]
    assert exponents.tolist() == [127]
    with pytest.raises(TypeError, match="float64"):
        encode(torch.ones(3), torch.float64)


def test_split_and_join_master_keep_every_bit():
    bits = torch.randint(-(2**31), 2**31, (200_001,)).to(torch.int32)
    bits[:4] = torch.tensor([0, -(2**31), 0x7F800000, 0x7F7FFFFF])
    master = bits.view(torch.float32)
    weight, remainder = split_master(master)
    assert (weight.dtype, remainder.dtype) == (torch.bfloat16, torch.int16)
    back = join_master(weight, remainder)
    assert torch.equal(back.view(torch.int32)[~master.isnan()], bits[~master.isnan()])
    assert back[master.isnan()].isnan().all()
    nearest = (weight.double() - master.double()).abs()[master.isfinite()]
    rounded = (master.bfloat16().double() - master.double()).abs()[master.isfinite()]
    assert torch.equal(nearest, rounded)


def test_reference_fused_multiply_add_rounds_once():
    a, b, c = (torch.randn(2000) * 10.0 ** torch.randint(-8, 8, (2000,)) for _ in range(3))
    # Where the product nearly cancels the addend; and where fp64 rounds to a tie of fp32, which
    # the addend should break.
    c[:500] = -(a[:500] * b[:500])
    a[500:600], b[500:600] = 1 + 2.0**-12, 1 + 2.0**-12
    c[500:600] = 2.0 ** -torch.arange(31.0, 131.0)
    c[550:600] *= -1
    got = plain.fused_multiply_add(a, b, c)
    below, above = (got.nextafter(torch.tensor(end)) for end in (-float("inf"), float("inf")))
    rows = torch.stack([a, b, c, got, below, above], dim=1).tolist()
    for x, y, z, value, *neighbours in rows:
        exact = Fraction(x) * Fraction(y) + Fraction(z)
        for neighbour in neighbours:
            assert abs(Fraction(value) - exact) <= abs(Fraction(neighbour) - exact)
