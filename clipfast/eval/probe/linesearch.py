"""How far to go along a direction, on a convex function."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite

_DECREASE = 1e-4
_FLATTER = 0.9
_MAX_TRIALS = 20


@dataclass
class LineSearch:
    """One problem's search for a step that satisfies the strong Wolfe conditions.

        f(t) <= f(0) + 1e-4 t f'(0),   |f'(t)| <= 0.9 |f'(0)|

    f is convex, so the sign of f'(t) says on which side the minimum is, and the secant of f' where.
    Near the minimum values differ by less than their rounding. There the slope alone decides.

    Attributes:
        step: the next trial, t.
        trials: how many were made.
    """

    step: float = 1.0
    trials: int = 0
    low: float = 0.0
    low_slope: float = 0.0
    high: float = 0.0  # 0 where none is known
    high_slope: float = 0.0

    def judge(
        self, start: float, start_slope: float, value: float, slope: float, noise: float
    ) -> bool:
        """Take the trial at ``step`` or choose another.

        Args:
            start: f(0).
            start_slope: f'(0), below 0.
            value: f(step).
            slope: f'(step).
            noise: how far values may be off.

        Returns:
            Whether the step is taken. Otherwise ``step`` is the next trial.
        """
        if self.trials == 0:
            self.low_slope = start_slope
        self.trials += 1
        finite = isfinite(value) and isfinite(slope)
        falls = finite and value <= start + _DECREASE * self.step * start_slope + noise
        if falls and abs(slope) <= _FLATTER * abs(start_slope):
            return True
        if falls and slope < 0:
            self.low, self.low_slope = self.step, slope
        else:
            self.high, self.high_slope = self.step, slope if finite else float("inf")
        self.step = self._next()
        return False

    @property
    def is_lost(self) -> bool:
        """Whether rounding hides the minimum."""
        return self.trials >= _MAX_TRIALS

    def _next(self) -> float:
        if not self.high:
            return 4.0 * self.low
        width = self.high - self.low
        share = 0.5
        if isfinite(self.high_slope) and self.high_slope > 0.0:
            share = self.low_slope / (self.low_slope - self.high_slope)
        return self.low + width * min(max(share, 0.1), 0.9)
