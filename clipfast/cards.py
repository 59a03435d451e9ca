"""What a GPU multiplies per second at most, by its name: NVIDIA's data sheets, without sparsity."""

import torch

# The first entry whose words all stand in a card's name. TFLOP/s of dense products: float16 and
# bfloat16, then TF32, then float32; None where a card has no such units.
_PEAKS: tuple[tuple[tuple[str, ...], float, float | None, float], ...] = (
    (("H200",), 989.4, 494.7, 66.9),
    (("H100", "NVL"), 835.5, 417.5, 60.0),
    (("H100", "PCIe"), 756.0, 378.0, 51.2),
    (("H100",), 989.4, 494.7, 66.9),
    (("A100",), 312.0, 156.0, 19.5),
    (("L40S",), 362.05, 183.2, 91.6),
    (("V100", "SXM3"), 130.0, None, 16.4),
    (("V100", "PCIE"), 112.0, None, 14.0),
    (("V100",), 125.0, None, 15.7),
)


def peak_flop(card: str, dtype: torch.dtype, uses_tf32: bool = False) -> float | None:
    """FLOP per second of dense matrix products.

    Args:
        card: as ``torch.cuda.get_device_name`` spells it.
        dtype: of the factors.
        uses_tf32: float32 factors are multiplied as TF32.

    Returns:
        The data sheet's figure; None for a card or a type that is not known.
    """
    found = (rates for words, *rates in _PEAKS if all(word in card for word in words))
    half, tf32, single = next(found, (None, None, None))
    rate = {
        torch.float16: half,
        # Ampere was the first to have it.
        torch.bfloat16: half if tf32 else None,
        torch.float32: (tf32 if uses_tf32 else None) or single,
    }.get(dtype)
    return rate * 1e12 if rate else None
