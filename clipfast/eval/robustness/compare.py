"""Robustness beside other models: effective and relative."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from clipfast.eval.robustness.baselines import Baseline
from clipfast.eval.robustness.fit import Fit, fit_logits
from clipfast.eval.robustness.measure import Score
from clipfast.names import did_you_mean

_log = logging.getLogger(__name__)


def compare(
    scores: Sequence[Score], baselines: Sequence[Baseline], relative_to: str | None = None
) -> tuple[tuple[Score, ...], dict[str, Fit]]:
    """Say how each accuracy lies to those of other models.

        effective = acc on the shift - expected(acc on the reference)
        relative  = acc on the shift - acc of the baseline on the shift

    What is expected is a line through the baselines on the scale of logits, for each shift its own.

    Args:
        scores: to compare.
        baselines: other models.
        relative_to: name of one of them.

    Returns:
        The scores, and the line of each shift that has one.

    Raises:
        ValueError: there is no baseline of that name.

    Taori et al. 2020, section 3.
    """
    names = sorted({one.model for one in baselines})
    if relative_to is not None and relative_to not in names:
        raise ValueError(
            f"--relative-to {relative_to!r}: no baseline is called so."
            f"{did_you_mean(relative_to, names)} There are: {', '.join(names) or 'none'}"
        )
    fits: dict[str, Fit] = {}
    for shift in dict.fromkeys(score.dataset for score in scores):
        of_shift = [one for one in baselines if one.is_of(shift)]
        outside = [one.model for one in of_shift if not one.is_inside]
        if outside:
            _log.warning(
                "%s: %d baseline(s) with an accuracy of 0 or 1 are left out of the line, such as "
                "%s",
                shift,
                len(outside),
                outside[0],
            )
        fit = fit_logits([(one.reference_acc1, one.acc1) for one in of_shift if one.is_inside])
        if fit is not None:
            fits[shift] = fit
        elif of_shift:
            _log.warning(
                "%s: no line, since its %d baseline(s) are not two of different accuracy",
                shift,
                len(of_shift) - len(outside),
            )
    return tuple(_compared(score, baselines, fits, relative_to) for score in scores), fits


def _compared(
    score: Score, baselines: Sequence[Baseline], fits: dict[str, Fit], relative_to: str | None
) -> Score:
    fit = fits.get(score.dataset)
    expected = None if fit is None else fit.predict(score.reference_acc1)
    base = [b for b in baselines if b.model == relative_to and b.is_of(score.dataset)]
    return replace(
        score,
        effective_robustness=None if expected is None else score.acc1 - expected,
        relative_robustness=score.acc1 - base[0].acc1 if base else None,
    )
