"""The result of robustness, as JSON has it and as a person reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from clipfast.eval.intervals import clopper_pearson
from clipfast.eval.robustness.baselines import Baseline
from clipfast.eval.robustness.fit import Fit
from clipfast.eval.robustness.measure import ADAPTED, OWN_NAMES, Robustness, Score
from clipfast.eval.sets.corruptions import CORRUPTIONS, GROUPS

_TITLES = {
    "zeroshot": "zero-shot",
    "superclass_max": "best of members",
    "own_names": "own names",
    "adapted": "adapted",
}
_GAINS = ("effective_robustness", "relative_robustness")


def metrics_of(found: Robustness) -> dict[str, float | None]:
    """Flat numbers.

    ``reference_acc1``, ``SHIFT_acc1`` of zero-shot, ``SHIFT_own_names_acc1``,
    ``SHIFT_adapted_acc1``, and means over shifts and over corruptions.

    Args:
        found: what was measured.
    """
    metrics: dict[str, float | None] = {"reference_acc1": found.right / found.images}
    for score in found.scores:
        is_other = score.classifier in (OWN_NAMES, ADAPTED)
        middle = f"_{score.classifier}" if is_other else ""
        metrics[f"{score.dataset}{middle}_acc1"] = score.acc1
    for prefix, scores in _by_classifier(found.scores).items():
        natural = [score.acc1 for score in scores if score.corruption is None]
        corrupted = [score.acc1 for score in scores if score.corruption is not None]
        if natural and prefix != f"{OWN_NAMES}_":
            metrics[f"{prefix}mean_shift_acc1"] = _mean(natural)
        if corrupted:
            metrics[f"{prefix}mean_corruption_acc1"] = _mean(corrupted)
    return metrics


def as_json(
    found: Robustness, fits: dict[str, Fit], baselines: Sequence[Baseline]
) -> dict[str, Any]:
    """What stands in the file beside CLIP_benchmark's keys.

    Args:
        found: what was measured, compared.
        fits: lines by shift.
        baselines: that they go through.
    """
    return {
        "split": found.split,
        "images": found.images,
        "reference_interval": clopper_pearson(found.right, found.images),
        "shifts": [_entry(score) for score in found.scores],
        "fit": {shift: asdict(fit) for shift, fit in fits.items()},
        "baselines": [asdict(one) for one in baselines],
        "corruptions": {
            name.rstrip("_") or "zeroshot": _corruptions(scores)
            for name, scores in _by_classifier(found.scores).items()
            if any(score.corruption for score in scores)
        },
        "unreadable": found.unreadable,
        "classes_left_out": {
            shift: {"classes": classes, "images": images}
            for shift, (classes, images) in found.left_out.items()
        },
        "seconds": found.seconds,
    }


def table(found: Robustness, fits: dict[str, Fit]) -> list[str]:
    """Lines for a person.

    Args:
        found: what was measured, compared.
        fits: lines by shift.
    """
    low, high = clopper_pearson(found.right, found.images)
    lines = [
        f"{found.reference} ({found.split}, {found.images} images): "
        f"{found.right / found.images:.2%} ({low:.2%} to {high:.2%})"
    ]
    natural = [score for score in found.scores if score.corruption is None]
    if natural:
        lines += _natural(natural, found.reference)
    for prefix, scores in _by_classifier(found.scores).items():
        corrupted = [score for score in scores if score.corruption is not None]
        if corrupted:
            title = _TITLES[prefix.rstrip("_") or "zeroshot"]
            lines += _corrupted_table(title, corrupted)
    lines += [
        f"{shift}: line of {fit.models} models, slope {fit.slope:.3f}, intercept "
        f"{fit.intercept:+.3f} (logits)"
        for shift, fit in fits.items()
    ]
    for shift, (classes, images) in found.left_out.items():
        lines.append(
            f"{shift}: {classes} class(es) with {images} image(s) are left out, which "
            f"{found.reference} has not"
        )
    for name, count in found.unreadable.items():
        lines.append(f"{name}: {count} image(s) do not decode and are left out")
    return lines


def _entry(score: Score) -> dict[str, Any]:
    name, severity = score.corruption or (None, None)
    return {
        "dataset": score.dataset,
        "classifier": score.classifier,
        "acc1": score.acc1,
        "interval": score.interval,
        "reference_acc1": score.reference_acc1,
        "effective_robustness": score.effective_robustness,
        "relative_robustness": score.relative_robustness,
        "images": score.images,
        "reference_images": score.reference_images,
        "corruption": name,
        "severity": severity,
    }


def _by_classifier(scores: Sequence[Score]) -> dict[str, list[Score]]:
    """Scores by the prefix of their metrics: zero-shot has none, superclasses are zero-shot."""
    found: dict[str, list[Score]] = {}
    for score in scores:
        is_other = score.classifier in (OWN_NAMES, ADAPTED)
        found.setdefault(f"{score.classifier}_" if is_other else "", []).append(score)
    return found


def _corruptions(scores: Sequence[Score]) -> dict[str, Any]:
    cells = {score.corruption: score.acc1 for score in scores if score.corruption is not None}
    severities = sorted({severity for _, severity in cells})
    names = [name for name in CORRUPTIONS if any(name == each for each, _ in cells)]

    def mean_of(chosen: Sequence[tuple[str, int]]) -> float | None:
        values = [cells[key] for key in chosen if key in cells]
        return _mean(values) if values else None

    return {
        "mean_acc1": _mean(list(cells.values())),
        **{f"mean_{gain}": _mean_gain(scores, gain) for gain in _GAINS},
        "by_corruption": {
            name: {str(s): cells[name, s] for s in severities if (name, s) in cells}
            for name in names
        },
        "by_severity": {str(s): mean_of([(name, s) for name in names]) for s in severities},
        "by_group": {
            group: mean
            for group, members in GROUPS.items()
            if (mean := mean_of([(name, s) for name in members for s in severities])) is not None
        },
    }


def _natural(scores: Sequence[Score], reference: str) -> list[str]:
    width = max(len(score.dataset) for score in scores) + 2
    lines = [
        f"{'shift':{width}}{'classifier':17}{'images':>8}{'reference':>11}{'shift':>9}"
        f"{'99.5% interval':>20}{'effective':>11}{'relative':>10}"
    ]
    for score in scores:
        low, high = score.interval
        gains = [
            "" if gain is None else f"{100 * gain:+.2f}"
            for gain in (score.effective_robustness, score.relative_robustness)
        ]
        lines.append(
            f"{score.dataset:{width}}{_TITLES[score.classifier]:17}{score.images:>8}"
            f"{score.reference_acc1:>11.2%}{score.acc1:>9.2%}"
            f"{f'{low:.2%} to {high:.2%}':>20}{gains[0]:>11}{gains[1]:>10}"
        )
    lines.append(f"reference: {reference} on the classes of the shift; gains in points")
    return lines


def _corrupted_table(title: str, scores: Sequence[Score]) -> list[str]:
    found = _corruptions(scores)
    severities = list(found["by_severity"])
    head = "".join(f"{'severity ' + s:>12}" for s in severities)
    lines = [f"{title + ', corrupted':24}{head}"]
    for name, cells in found["by_corruption"].items():
        lines.append(
            f"{name:24}"
            + "".join(f"{cells[s]:>12.2%}" if s in cells else " " * 12 for s in severities)
        )
    means = [found["by_severity"][s] for s in severities]
    lines.append(f"{'mean':24}" + "".join(f"{mean:>12.2%}" for mean in means))
    groups = ", ".join(f"{group} {mean:.2%}" for group, mean in found["by_group"].items())
    lines.append(f"mean {found['mean_acc1']:.2%} ({groups}), {scores[0].images} images each")
    for gain in _GAINS:
        mean = found[f"mean_{gain}"]
        if mean is not None:
            lines.append(f"mean {gain.replace('_', ' ')}: {100 * mean:+.2f} points")
    return lines


def _mean_gain(scores: Sequence[Score], gain: str) -> float | None:
    """Over all corruptions; None where it is not known of each."""
    values = [getattr(score, gain) for score in scores]
    return None if None in values else _mean(values)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
