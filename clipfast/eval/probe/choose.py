"""The strength that does best on rows that were not learned from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from clipfast.eval.probe.classifier import Classifiers
from clipfast.eval.probe.fit import fit
from clipfast.eval.probe.labels import Targets
from clipfast.eval.probe.rows import Rows
from clipfast.eval.probe.search import Found, Score, search, strength, sweep
from clipfast.eval.sharing import Sharing

SEARCHES: dict[str, Callable[[Score], Found]] = {"search": search, "sweep": sweep}
_AT_ONCE = 8
_STATE_BYTES = 4 << 30
_VECTORS = 26  # of L-BFGS: ten pairs, and what a round computes


@dataclass(eq=False)
class WarmFits:
    """Fits of some rows, each started from the nearest that is there.

    Attributes:
        rows: to learn from.
        targets: what they are.
        options: of ``fit``.
        found: one classifier for each step that was fitted.
        late: how many fits did not converge.
        passes: over the rows.
    """

    rows: Rows
    targets: Targets
    options: dict[str, Any] = field(default_factory=dict)
    found: dict[int, Classifiers] = field(default_factory=dict)
    late: int = 0
    passes: int = 0

    def at(self, steps: Sequence[int]) -> Classifiers:
        """Classifiers of some steps, fitted together.

        Args:
            steps: of ``search.strength``.
        """
        start = self._start(steps)
        fits = fit(
            self.rows,
            self.targets,
            [strength(step) for step in steps],
            start=start,
            **self.options,
        )
        self.late += fits.converged.count(False)
        self.passes += fits.passes
        for number, step in enumerate(steps):
            self.found[step] = fits.classifiers.take(number)
        return fits.classifiers

    def batches(self, steps: Sequence[int]) -> list[list[int]]:
        """Steps that are fitted together: those whose state fits in memory, the strongest first."""
        state = 8 * _VECTORS * self.targets.classes * (min(self.rows.dim, len(self.rows)) + 1)
        count = max(1, min(_AT_ONCE, _STATE_BYTES // state))
        ordered = sorted(steps, reverse=True)
        return [ordered[i : i + count] for i in range(0, len(ordered), count)]

    def _start(self, steps: Sequence[int]) -> Classifiers | None:
        if not self.found:
            return None
        near = [self.found[min(self.found, key=lambda s: (abs(s - step), s))] for step in steps]
        return Classifiers(
            torch.cat([one.weight for one in near]),
            torch.cat([one.bias for one in near]),
            near[0].is_softmax,
        )


def choose(
    learners: Sequence[WarmFits],
    score: Callable[[Sequence[Classifiers]], Sequence[float]],
    how: str = "search",
    sharing: Sharing | None = None,
    between: Callable[[], None] | None = None,
) -> Found:
    """Search among the strengths. Ranks share the strengths of each round.

    Args:
        learners: one; several are the folds of a cross-validation.
        score: from the learners' classifiers ``[L, ...]`` to L scores.
        how: "search" or "sweep".
        sharing: this rank among others that call it together; None: alone.
        between: called before each round, by all ranks alike.

    Raises:
        ValueError: there is no search of that name.
    """
    sharing = sharing or Sharing()
    if how not in SEARCHES:
        raise ValueError(f"how {how!r}: expected one of {', '.join(SEARCHES)}")

    def ask(steps: Sequence[int]) -> list[float]:
        if between is not None:
            between()
        late = [one.late for one in learners]
        mine: dict[int, float] = {}
        for batch in learners[0].batches(steps[sharing.rank :: sharing.world_size]):
            mine.update(zip(batch, score([one.at(batch) for one in learners]), strict=True))
        if sharing.world_size == 1:
            return [mine[step] for step in steps]
        fits = [{step: one.found[step] for step in mine} for one in learners]
        more = [one.late - before for one, before in zip(learners, late, strict=True)]
        found: dict[int, float] = {}
        for rank, (theirs, their_fits, their_late) in enumerate(
            sharing.gather_objects((mine, fits, more))
        ):
            found.update(theirs)
            if rank == sharing.rank:
                continue
            # The next round starts from the nearest, whoever fitted it.
            for one, classifiers, count in zip(learners, their_fits, their_late, strict=True):
                one.found.update(classifiers)
                one.late += count
        return [found[step] for step in steps]

    return SEARCHES[how](ask)
