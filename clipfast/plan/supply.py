"""What a run asks of its data: pictures and bytes per second, and the cores that decode them."""

from dataclasses import dataclass

# Photographs of 640 x 512 to 224 on one core of an AMD EPYC, decoded whole (docs/measured/data.md);
# such a file has 100 kB. Larger pictures need more of both.
DECODED_PER_CORE = 854.0
KILOBYTES = 100.0


@dataclass(frozen=True)
class Supply:
    """What must come in, over all ranks.

    Attributes:
        images: per second.
        bytes: per second, encoded.
        cores: that decode them, in all.
    """

    images: float
    bytes: float
    cores: float


def supply(
    batch: int,
    step_seconds: float,
    kilobytes: float = KILOBYTES,
    per_core: float = DECODED_PER_CORE,
) -> Supply:
    """What a step of a given length takes in.

    Args:
        batch: pairs of a step, over all ranks.
        step_seconds: its length.
        kilobytes: of an encoded pair.
        per_core: pictures that a core decodes per second.
    """
    images = batch / step_seconds
    return Supply(images, images * kilobytes * 1e3, images / per_core)
