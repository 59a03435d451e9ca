"""The formats of AdamW's statistics and weights: rounding, encode and decode, split and join."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 256  # elements that share an exponent
NEAREST = 0x8000  # the random bits that round to nearest
# A block's largest magnitude is scaled into [2^14, 2^15), as high in fp16 as rounding up allows.
TOP_EXPONENT = 14
# Exponents of blocks: they fit 8 bits, and their scales are normal fp32 numbers.
SMALLEST_EXPONENT, LARGEST_EXPONENT = -112, 127
MAGNITUDE = 0x7FFFFFFF
INFINITY = 0x7F800000
BIAS = 127  # of the exponent in fp32's bits
_WORD = 0xFFFFFFFF


def bits_of(x: Tensor) -> Tensor:
    """The bits of fp32 numbers, as int64."""
    return x.view(torch.int32).long() & _WORD


def float_of(bits: Tensor) -> Tensor:
    """The fp32 numbers of these bits."""
    return bits.to(torch.int32).view(torch.float32)


def round_to_half(x: Tensor, random: Tensor | int) -> Tensor:
    """fp16, magnitudes rounded up with the probability of the fraction that would be lost.

    Args:
        x: fp32.
        random: 16 random bits per element, or NEAREST.

    Returns:
        fp16 of x's shape. Finite numbers stay finite: at most 65504.
    """
    bits = bits_of(x)
    magnitude = bits & MAGNITUDE
    normal = ((magnitude + (random >> 3)) >> 13) - (112 << 10)
    units = (float_of(magnitude).double().clamp(max=1.0) * 2.0**40).nan_to_num(0.0).long()
    half = torch.where(magnitude >= 0x38800000, normal.clamp(max=0x7BFF), (units + random) >> 16)
    half = torch.where(magnitude == INFINITY, 0x7C00, half)
    half = torch.where(magnitude > INFINITY, 0x7E00, half)
    return (half | (bits >> 16 & 0x8000)).to(torch.int16).view(torch.float16)


def round_to_bfloat16(x: Tensor, random: Tensor | int) -> Tensor:
    """bf16, as `round_to_half` rounds to fp16."""
    bits = bits_of(x)
    magnitude = bits & MAGNITUDE
    rounded = ((magnitude + random) >> 16).clamp(max=0x7F7F)
    rounded = torch.where(magnitude == INFINITY, 0x7F80, rounded) | (bits >> 16 & 0x8000)
    rounded = torch.where(magnitude > INFINITY, 0x7FC0, rounded)
    return rounded.to(torch.int16).view(torch.bfloat16)


def round_to(x: Tensor, dtype: torch.dtype, random: Tensor | int) -> Tensor:
    """x in fp16 or bf16, with the given random bits."""
    return (round_to_half if dtype == torch.float16 else round_to_bfloat16)(x, random)


def split_master(master: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest bf16 of fp32 weights, and the 16 bits that give them back.

    Args:
        master: fp32, any shape.

    Returns:
        bf16 and int16, shape of master.
    """
    bits = bits_of(master)
    is_nan = (bits & MAGNITUDE) > INFINITY
    high = torch.where(is_nan, 0x7FC0, (bits + 0x8000) >> 16)
    low = torch.where(is_nan, 0, bits)
    return high.to(torch.int16).view(torch.bfloat16), low.to(torch.int16)


def join_master(weight: Tensor, remainder: Tensor) -> Tensor:
    """The fp32 weights that `split_master` took apart.

    Args:
        weight: bf16.
        remainder: int16, shape of weight.

    Returns:
        fp32. Where the weight was set by hand, to zero or infinity, and the sum is no number, the
        weight alone.
    """
    alone = weight.view(torch.int16).long() << 16 & _WORD
    joined = alone + remainder.long() & _WORD
    return float_of(torch.where((joined & MAGNITUDE) > INFINITY, alone, joined))


def follow(param: Tensor, master: Tensor) -> Tensor:
    """The fp32 weights of half parameters and their masters.

    A parameter that is not its master's nearest value was set by hand: it is the weight then.

    Args:
        param: fp16 or bf16.
        master: fp32, shape of param.

    Returns:
        A new fp32 tensor.
    """
    is_nearest = master.to(param.dtype).view(torch.int16) == param.view(torch.int16)
    return torch.where(is_nearest, master, param.float())


def in_memory_order(t: Tensor) -> Tensor:
    """[numel] view of a tensor whose elements fill its memory, in the order that they lie there."""
    return t.as_strided((t.numel(),), (1,))


def spread(exponents: Tensor, numel: int) -> Tensor:
    """Each element's exponent, int64 [numel], from its block's."""
    return exponents.long().repeat_interleave(BLOCK)[:numel]


def encode_flat(
    flat: Tensor, dtype: torch.dtype, random: Tensor | int
) -> tuple[Tensor, Tensor | None]:
    """`encode` of a vector, rounded by the given random bits.

    Args:
        flat: fp32 [n].
        dtype: fp16, bf16 or fp32.
        random: 16 random bits per element, or NEAREST.

    Returns:
        Codes [n]; and, for fp16, exponents int8 [ceil(n / 256)].
    """
    if dtype == torch.float32:
        return flat.clone(), None
    if dtype == torch.bfloat16:
        return round_to_bfloat16(flat, random), None
    magnitude = torch.nn.functional.pad(bits_of(flat) & MAGNITUDE, (0, -len(flat) % BLOCK))
    exponents = (magnitude.view(-1, BLOCK).amax(1) >> 23) - BIAS
    exponents = exponents.clamp(SMALLEST_EXPONENT, LARGEST_EXPONENT)
    scale = float_of((BIAS + TOP_EXPONENT - spread(exponents, len(flat))) << 23)
    return round_to_half(flat * scale, random), exponents.to(torch.int8)


def decode_flat(flat: Tensor, exponents: Tensor | None) -> Tensor:
    """`decode` of a vector: fp32 [n]."""
    if exponents is None:
        return flat.float()
    return flat.float() * float_of((spread(exponents, len(flat)) + BIAS - TOP_EXPONENT) << 23)


def encode(value: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Statistics as the optimizer keeps them, rounded to nearest.

    In fp16 each block of 256 elements, in the order of memory, shares a power of two: the code is
    value * 2^(14 - e), e the exponent of the block's largest magnitude.

    Args:
        value: fp32, its elements filling its memory. Of the second moment, the root (but for fp32).
        dtype: fp16, bf16 or fp32.

    Returns:
        Codes of value's shape and strides; and, for fp16, exponents int8 [ceil(numel / 256)].

    Raises:
        TypeError: another dtype.
    """
    if dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise TypeError(f"expected fp16, bf16 or fp32 statistics, got {dtype}")
    value = value.detach().float()
    code = torch.empty_like(value, dtype=dtype)
    if value.numel() == 0:
        empty = torch.empty(0, dtype=torch.int8, device=value.device)
        return code, empty if dtype == torch.float16 else None
    flat, exponents = encode_flat(in_memory_order(value), dtype, NEAREST)
    in_memory_order(code).copy_(flat)
    return code, exponents


def decode(code: Tensor, exponents: Tensor | None) -> Tensor:
    """What `encode` made of a value, or a step of the optimizer.

    Args:
        code: fp16, bf16 or fp32, its elements filling its memory.
        exponents: int8 [ceil(numel / 256)] for fp16, else None.

    Returns:
        fp32 of code's shape and strides.
    """
    value = torch.empty_like(code, dtype=torch.float32)
    if code.numel():
        in_memory_order(value).copy_(decode_flat(in_memory_order(code), exponents))
    return value
