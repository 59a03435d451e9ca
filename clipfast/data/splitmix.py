"""Numbers that look random and are a function of what they are of (Steele, Lea and Flood 2014)."""

import numpy as np

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def mixed(state: np.ndarray) -> np.ndarray:
    """A step of SplitMix64; products wrap around at 2^64.

    Args:
        state: ``[N]`` uint64.
    """
    state = state + _STEP
    state = (state ^ (state >> np.uint64(30))) * _FIRST
    state = (state ^ (state >> np.uint64(27))) * _SECOND
    return state ^ (state >> np.uint64(31))
