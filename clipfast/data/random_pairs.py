"""Random images and captions, made on the device that trains: a step is measured without data.

The law of the captions' lengths stands here once; benchmarks of text read it too.
"""

import hashlib
import math
import statistics

import torch
from torch import Tensor

from clipfast.devices import to_device
from clipfast.tokenizer import CONTEXT_LENGTH, END_OF_TEXT, START_OF_TEXT

# Tokens of a caption, start and end included: log-normal, with this mean and this deviation of the
# logarithm. Median 17, one caption in twenty above 44. Near the captions of the web that were
# counted: 20.2 +- 16.3 words in CC12M (Changpinyo et al. 2021, table 1). A choice, no measurement.
WEB_MEAN, WEB_SIGMA = 20.0, 0.6
# Start, one token, end.
SHORTEST = 3
_BYTES_OF_A_DRAW = 8


def web_lengths(quantiles: Tensor) -> Tensor:
    """The lengths at these quantiles of the web-like law.

    Args:
        quantiles: ``[B]``, in (0, 1).

    Returns:
        ``[B]`` int64, rounded and cut to 3 ... 77 tokens.
    """
    normal = statistics.NormalDist(math.log(WEB_MEAN) - WEB_SIGMA**2 / 2, WEB_SIGMA)
    lengths = [math.exp(normal.inv_cdf(q)) for q in quantiles.tolist()]
    return torch.tensor(lengths).round().long().clamp(SHORTEST, CONTEXT_LENGTH)


def generator_of(device: torch.device, *place: int) -> torch.Generator:
    """A generator whose numbers depend on a place alone, such as seed, epoch, batch and rank.

    On a GPU it is Philox, which counts: no state is kept or read back. Draws of a CPU and of a GPU
    differ.

    Args:
        device: where the numbers are made.
        place: whole numbers, non-negative.
    """
    words = hashlib.blake2b(repr(place).encode(), digest_size=8).digest()
    generator = torch.Generator(device)
    generator.manual_seed(int.from_bytes(words, "little") >> 1)
    return generator


def random_crops(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Images of independent random bytes. Eight bytes come of one draw.

    Args:
        count: B.
        size: S, pixels.
        generator: on the device where they are wanted.

    Returns:
        ``[B, S, S, 3]`` uint8.
    """
    total = count * size * size * 3
    draws = torch.empty(-(-total // _BYTES_OF_A_DRAW), dtype=torch.int64, device=generator.device)
    # Without an end all 64 bits are random.
    draws.random_(-(2**63), None, generator=generator)
    return draws.view(torch.uint8)[:total].view(count, size, size, 3)


def random_captions(
    count: int, generator: torch.Generator, order: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Captions of random tokens with the lengths of the web-like law.

    The lengths lie at evenly spaced quantiles behind a random first one, in random order: a batch
    of 16 already has the law's mean, and batches still differ a little.

    Args:
        count: B.
        generator: of the tokens, on the device where they are wanted.
        order: of the lengths, on the CPU.

    Returns:
        Tokens ``[B, L]`` int64 on the device, zeros after end-of-text, and lengths ``[B]`` int64 on
        the CPU; L is the longest.
    """
    first = torch.rand((), dtype=torch.float64, generator=order).clamp(1e-6, 1 - 1e-6)
    quantiles = (torch.arange(count, dtype=torch.float64) + first) / count
    lengths = web_lengths(quantiles)[torch.randperm(count, generator=order)]
    device, longest = generator.device, int(lengths.max())
    tokens = torch.randint(1, START_OF_TEXT, (count, longest), generator=generator, device=device)
    tokens[:, 0] = START_OF_TEXT
    positions = torch.arange(longest, device=device)
    ends = to_device(lengths, device)[:, None] - 1
    tokens.masked_fill_(positions == ends, END_OF_TEXT)
    return tokens.masked_fill_(positions > ends, 0), lengths
