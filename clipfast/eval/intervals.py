"""How far a measured share may lie from the true one."""

from math import exp, lgamma, log, log1p

_HALVINGS = 100  # an interval in [0, 1] has no more doubles to halve it at
_NEGLIGIBLE = 1e-17


def clopper_pearson(successes: int, trials: int, level: float = 0.995) -> tuple[float, float]:
    """The exact interval of a binomial share, which holds the true one ``level`` of the time.

        low:  P(X >= successes | low)  = (1 - level) / 2        low = 0 where successes = 0
        high: P(X <= successes | high) = (1 - level) / 2        high = 1 where successes = trials

    Equal to ``scipy.stats.binomtest(successes, trials).proportion_ci(level)``, without scipy.

    Args:
        successes: samples that were right.
        trials: samples in all, at least 1.
        level: confidence, in (0, 1); 0.995 is the paper's.

    Returns:
        ``(low, high)``, shares in [0, 1].

    Raises:
        ValueError: no trials, successes outside [0, trials], or a level outside (0, 1).

    Clopper and Pearson 1934; Radford et al. 2021, table 10.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(
            f"expected 0 <= successes <= trials and at least 1 trial, got {successes} of {trials}"
        )
    if not 0.0 < level < 1.0:
        raise ValueError(f"level is a share in (0, 1), such as 0.995, got {level}")
    tail = (1.0 - level) / 2
    return _low(successes, trials, tail), 1.0 - _low(trials - successes, trials, tail)


def _low(successes: int, trials: int, tail: float) -> float:
    """The share p with P(X >= successes | p) = tail."""
    if successes == 0:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if _upper_tail(successes, trials, middle) < tail:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _upper_tail(successes: int, trials: int, share: float) -> float:
    """P(X >= successes), or 1 where ``successes`` is not above the mean.

    Above the mean each term is smaller than the one before, so the sum ends after a few standard
    deviations. Below it the tail is at least a half, and no ``level`` asks for more.
    """
    if share * trials >= successes:
        return 1.0
    term = exp(
        lgamma(trials + 1)
        - lgamma(successes + 1)
        - lgamma(trials - successes + 1)
        + successes * log(share)
        + (trials - successes) * log1p(-share)
    )
    odds = share / (1.0 - share)
    total = 0.0
    for count in range(successes, trials + 1):
        total += term
        term *= (trials - count) / (count + 1) * odds
        if term <= _NEGLIGIBLE * total:
            break
    return total
