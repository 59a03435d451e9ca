"""Which strength of regularization: the parametric search of Radford et al. 2021, appendix A.3."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

STEPS_PER_DECADE = 8
STEPS = 96  # from 1e-6 to 1e6
_FIRST_GAP = 16  # two decades

Score = Callable[[Sequence[int]], Sequence[float]]


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        best: the step with the highest score; of equals the strongest regularization.
        scores: of every step that was tried.
    """

    best: int
    scores: dict[int, float]

    @property
    def strength(self) -> float:
        """Lambda of the best step."""
        return strength(self.best)

    @property
    def is_at_edge(self) -> bool:
        """Whether a better lambda may lie outside the range."""
        return self.best in (0, STEPS)


def strength(step: int) -> float:
    """Lambda of a step: 10^(-6 + step / 8)."""
    return 10.0 ** (-6 + step / STEPS_PER_DECADE)


def search(score: Score) -> Found:
    """Start with 1e-6, 1e-4, ..., 1e6, then halve the interval around the peak to 8 steps a decade.

    That is 15 fits at most in place of 97. The answer is that of ``sweep`` where scores rise to one
    peak and fall behind it.

    Args:
        score: scores of some steps, higher is better; called once per round.
    """
    return _rounds(score, _FIRST_GAP)


def sweep(score: Score) -> Found:
    """Try every step.

    Args:
        score: see ``search``.
    """
    return _rounds(score, 1)


def _rounds(score: Score, gap: int) -> Found:
    scores: dict[int, float] = {}
    wanted = list(range(0, STEPS + 1, gap))
    while True:
        scores.update(zip(wanted, score(wanted), strict=True))
        # Later steps are stronger.
        best = max(scores, key=lambda step: (scores[step], step))
        gap //= 2
        if gap == 0:
            return Found(best, dict(sorted(scores.items())))
        wanted = [step for step in (best - gap, best + gap) if 0 <= step <= STEPS]
