"""L-BFGS on several problems at once, which share each pass over the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from clipfast.eval.probe.linesearch import LineSearch
from clipfast.eval.probe.objective import Evaluated

Evaluate = Callable[[Tensor, Tensor], Evaluated]
Precondition = Callable[[Tensor, Tensor, Tensor], Tensor]
_PATIENCE = 50
_SMALLER = 0.9
_SMALL_LOSS = 0.1  # below it a loss is a difference of logits, which are rounded too
_ROUNDING = 1e-6  # of a value: float32 logits of some tens
_FALL = 1e-7  # of a value, that counts as one


@dataclass(frozen=True, eq=False)
class Minimum:
    """Where the problems ended.

    Attributes:
        parameters: ``[L, C, P]`` float64.
        gradient_norm: the largest absolute value of each gradient.
        iterations: steps of each.
        converged: whether the gradient's norm is within the tolerance.
    """

    parameters: Tensor
    gradient_norm: tuple[float, ...]
    iterations: tuple[int, ...]
    converged: tuple[bool, ...]


@dataclass
class Progress:
    """Whether a problem still gets nearer to its minimum, or only moves within rounding.

    Attributes:
        value: the lowest so far.
        norm: the smallest so far.
        idle: steps since either fell.
    """

    value: float
    norm: float
    idle: int = 0

    def add(self, value: float, norm: float) -> None:
        """A step was taken.

        Args:
            value: there.
            norm: of the gradient there.
        """
        falls = value < self.value - _FALL * abs(self.value) or norm < _SMALLER * self.norm
        self.idle = 0 if falls else self.idle + 1
        self.value, self.norm = min(value, self.value), min(norm, self.norm)

    @property
    def is_over(self) -> bool:
        """Whether more steps are of no use."""
        return self.idle >= _PATIENCE


class History:
    """The last steps s and changes of the gradient y of each problem.

    A problem that took no step in a round has a pair with weight 0 there, which changes nothing.

    Args:
        memory: how many pairs are kept.
    """

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self.pairs: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, step: Tensor, change: Tensor, mask: Tensor) -> None:
        """Keep a pair for the problems in ``mask [A]``."""
        product = _dot(step, change)
        enough = torch.finfo(torch.float64).eps * _dot(change, change)
        weight = torch.where(mask & (product > enough), 1.0 / product, 0.0)
        self.pairs = [*self.pairs[-self.memory + 1 :], (step, change, weight)]

    def take(self, problems: Tensor) -> None:
        """Keep some of the problems."""
        self.pairs = [(s[problems], y[problems], w[problems]) for s, y, w in self.pairs]

    def direction(self, gradient: Tensor, precondition: Callable[[Tensor], Tensor]) -> Tensor:
        """-H g, by the two loops of Nocedal and Wright 2006, algorithm 7.4.

        Args:
            gradient: g, ``[A, C, P]``.
            precondition: H_0 times a vector. It is made shorter where the last pair says that the
                function is more curved than H_0 has it.
        """
        q = gradient.clone()
        shares = []
        for s, y, weight in reversed(self.pairs):
            share = weight * _dot(s, q)
            q -= share[:, None, None] * y
            shares.append(share)
        r = precondition(q)
        if self.pairs:
            s, y, weight = self.pairs[-1]
            ratio = 1.0 / (weight * _dot(y, precondition(y)))
            r *= torch.where(weight > 0, ratio.clamp(max=1.0), 1.0)[:, None, None]
        for (s, y, weight), share in zip(self.pairs, reversed(shares), strict=True):
            r += (share - weight * _dot(y, r))[:, None, None] * s
        return r.neg_()


def minimise(
    evaluate: Evaluate,
    precondition: Precondition,
    start: Tensor,
    tolerance: float = 1e-4,
    max_iterations: int = 1000,
    memory: int = 10,
) -> Minimum:
    """Minimise L smooth convex functions, each with its own steps.

    A round evaluates all problems that are not done, each at its own trial. The host waits once per
    round, for three numbers of each problem.

    Args:
        evaluate: values and gradients at ``[A, C, P]`` of the problems ``[A]``.
        precondition: an approximate inverse Hessian times a vector.
        start: ``[L, C, P]`` float64.
        tolerance: for the largest absolute value of a gradient.
        max_iterations: steps of each problem.
        memory: pairs of steps and gradients kept.

    Liu and Nocedal 1989.
    """
    count = len(start)
    active = list(range(count))
    problems = torch.arange(count, device=start.device)
    x, result = start, start.clone()
    iterations, norms, converged = [0] * count, [float("inf")] * count, [False] * count
    history = History(memory)
    at = evaluate(x, problems)
    first = torch.stack([at.value, _norm(at.gradient)]).tolist()
    values = dict(zip(active, first[0], strict=True))
    norms = first[1]
    searches = {problem: LineSearch() for problem in active}
    progress = [Progress(*pair) for pair in zip(*first, strict=True)]
    direction, slope = _descend(history, precondition, at, problems)
    done = {p for p in active if norms[p] <= tolerance}
    while True:
        keep = [i for i, p in enumerate(active) if p not in done]
        if done:
            where = torch.tensor(keep, dtype=torch.int64, device=x.device)
            for p in done:
                result[p] = x[active.index(p)]
                converged[p] = norms[p] <= tolerance
            active = [active[i] for i in keep]
            problems, x, at = problems[where], x[where], at.take(where)
            direction, slope = direction[where], slope[where]
            history.take(where)
        if not active:
            break
        steps = torch.tensor([searches[p].step for p in active], dtype=x.dtype).to(x.device)
        trial = x + steps[:, None, None] * direction
        there = evaluate(trial, problems)
        seen = torch.stack(
            [there.value, _dot(there.gradient, direction), slope, _norm(there.gradient)]
        ).tolist()
        taken, done = [], set()
        for i, p in enumerate(active):
            value, slope_there, slope_here, norm = (row[i] for row in seen)
            noise = _ROUNDING * max(abs(values[p]), _SMALL_LOSS)
            search = searches[p]
            taken.append(search.judge(values[p], slope_here, value, slope_there, noise))
            if taken[-1]:
                values[p], norms[p] = value, norm
                iterations[p] += 1
                searches[p] = LineSearch()
                progress[p].add(value, norm)
                is_last = iterations[p] >= max_iterations or progress[p].is_over
                if norm <= tolerance or is_last:
                    done.add(p)
            elif search.is_lost:
                done.add(p)
        if not any(taken):
            continue
        mask = torch.tensor(taken).to(x.device)
        history.add(trial - x, there.gradient - at.gradient, mask)
        x = torch.where(mask[:, None, None], trial, x)
        at = at.replaced(mask, there)
        fresh, fresh_slope = _descend(history, precondition, at, problems)
        direction = torch.where(mask[:, None, None], fresh, direction)
        slope = torch.where(mask, fresh_slope, slope)
    return Minimum(result, tuple(norms), tuple(iterations), tuple(converged))


def _descend(
    history: History, precondition: Precondition, at: Evaluated, problems: Tensor
) -> tuple[Tensor, Tensor]:
    """A direction that points down for every problem, and the slope along it."""
    direction = history.direction(at.gradient, lambda q: precondition(q, at.curvature, problems))
    slope = _dot(direction, at.gradient)
    steepest = -precondition(at.gradient, at.curvature, problems)
    is_down = slope < 0
    direction = torch.where(is_down[:, None, None], direction, steepest)
    return direction, torch.where(is_down, slope, _dot(steepest, at.gradient))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((1, 2))


def _norm(a: Tensor) -> Tensor:
    return a.abs().amax((1, 2))
