"""``synthetic[:N]``, as it is typed where shards would be."""

from collections.abc import Sequence

SYNTHETIC = "synthetic"
# 32 steps of the paper's 32,768 pairs.
DEFAULT_SAMPLES = 1 << 20
MOST_SAMPLES = 2**40


def synthetic_samples(patterns: Sequence[str]) -> int | None:
    """The number of samples that ``synthetic[:N]`` asks for.

    Args:
        patterns: of the training data.

    Returns:
        N, 1,048,576 without one; None where the patterns name shards.

    Raises:
        ValueError: N is no whole number from 1 to 2^40, or shards are named beside it.
    """
    asked = [pattern for pattern in patterns if pattern.partition(":")[0] == SYNTHETIC]
    if not asked:
        return None
    if len(patterns) > 1:
        raise ValueError(
            f"'{asked[0]}' stands alone: random pairs are not mixed with shards, and not given "
            f"twice. Pass '{SYNTHETIC}', '{SYNTHETIC}:N', or shards alone"
        )
    _, colon, text = asked[0].partition(":")
    if not colon:
        return DEFAULT_SAMPLES
    number = text.replace("_", "")
    if not (number.isascii() and number.isdecimal() and 1 <= int(number) <= MOST_SAMPLES):
        raise ValueError(
            f"'{asked[0]}': the samples of an epoch are a whole number from 1 to {MOST_SAMPLES:,}"
            f", without commas: '{SYNTHETIC}:1000000'"
        )
    return int(number)
