"""The result of groups, as JSON has it and as a person reads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clipfast.eval.groups.breakdown import Breakdown
from clipfast.eval.groups.columns import Column
from clipfast.eval.groups.disparity import Disparity
from clipfast.eval.groups.labelsets import LabelSet, Shares

_TITLES = {
    "acc1": "top-1",
    "acc5": "top-5",
    "mean_per_class_recall": "per class",
    "mean_average_precision": "mAP",
    "mean_average_precision_11_points": "mAP, 11 points",
}


def metrics_of(found: Breakdown) -> dict[str, float | None]:
    """Flat numbers: those of all images, and ``COLUMN_gap`` and ``COLUMN_ratio``.

    Args:
        found: what was measured.
    """
    metrics = dict(found.every.metrics)
    for name, one in found.disparities.items():
        metrics[f"{name}_gap"] = None if one is None else one.gap
        metrics[f"{name}_ratio"] = None if one is None else one.ratio
    return metrics


def as_json(
    found: Breakdown, columns: Sequence[Column], label_sets: Sequence[LabelSet]
) -> dict[str, Any]:
    """What stands in the file beside CLIP_benchmark's keys.

    Args:
        found: what was measured.
        columns: that it is by.
        label_sets: with added classes.
    """
    return {
        "metric": found.metric,
        "images": found.every.images,
        "interval": found.every.interval,
        "groups": {
            column.name: [
                {
                    "value": column.label(number),
                    "images": group.images,
                    "metrics": group.metrics,
                    "interval": group.interval,
                }
                for number, group in enumerate(found.groups[column.name])
            ]
            for column in columns
        },
        "disparities": {
            column.name: _disparity(column, found.disparities[column.name]) for column in columns
        },
        "label_sets": [
            {
                "added": one.added,
                "all": _shares(one.every),
                "groups": {
                    column.name: [
                        {"value": column.label(number), **_shares(group)}
                        for number, group in enumerate(one.groups[column.name])
                    ]
                    for column in columns
                },
            }
            for one in label_sets
        ],
    }


def table(found: Breakdown, columns: Sequence[Column], label_sets: Sequence[LabelSet]) -> list[str]:
    """Lines for a person.

    Args:
        found: what was measured.
        columns: that it is by.
        label_sets: with added classes.
    """
    names = list(found.every.metrics)
    width = 2 + max(
        len(_shown(column, number)) for column in columns for number in range(len(column.values))
    )
    width = max(width, 12, *(len(column.name) + 2 for column in columns))
    titles = "".join(f"{_TITLES[name]:>{_wide(name)}}" for name in names)
    lines = []
    for column in columns:
        lines.append(f"{column.name:{width}}{'images':>8}{titles}{'99.5% interval':>20}")
        every = [("all", found.every)]
        rows = [(_shown(column, i), one) for i, one in enumerate(found.groups[column.name])]
        for label, group in every + rows:
            cells = [group.metrics[name] for name in names]
            shown = "".join(
                f"{'' if cell is None else f'{cell:.2%}':>{_wide(name)}}"
                for name, cell in zip(names, cells, strict=True)
            )
            bounds = "" if group.interval is None else "{:.2%} to {:.2%}".format(*group.interval)
            lines.append(f"{label:{width}}{group.images:>8}{shown}{bounds:>20}")
        lines += _said(column, found.disparities[column.name])
    for one in label_sets:
        lines += _label_set(one, columns, width)
    return lines


def _disparity(column: Column, one: Disparity | None) -> dict[str, Any] | None:
    if one is None:
        return None
    is_apart = None if one.apart is None else (one.lowest, one.highest) in one.apart
    return {
        "metric": one.metric,
        "highest": column.label(one.highest),
        "lowest": column.label(one.lowest),
        "gap": one.gap,
        "ratio": one.ratio,
        "intervals_overlap": None if is_apart is None else not is_apart,
        "apart": None
        if one.apart is None
        else [[column.label(below), column.label(above)] for below, above in one.apart],
    }


def _shares(one: Shares) -> dict[str, Any]:
    return {"images": one.images, "shares": one.shares, "intervals": one.intervals}


def _said(column: Column, one: Disparity | None) -> list[str]:
    if one is None:
        return [f"{column.name}: fewer than two groups, so nothing to compare"]
    low, high = _shown(column, one.lowest), _shown(column, one.highest)
    line = f"{column.name}: largest gap {100 * one.gap:.2f} points, {low} to {high}"
    if one.ratio is not None:
        line += f", ratio {one.ratio:.3f}"
    if one.apart is None:
        return [line]
    is_apart = (one.lowest, one.highest) in one.apart
    line += "; their intervals do not overlap" if is_apart else "; their intervals overlap"
    return [line, f"  pairs of groups whose intervals do not overlap: {len(one.apart)}"]


def _label_set(one: LabelSet, columns: Sequence[Column], width: int) -> list[str]:
    told = "; ".join(f"{name}: {', '.join(names)}" for name, names in one.added.items())
    lines = [f"with added classes ({told})"]
    widths = {name: max(len(name), 7) + 2 for name in one.added}
    head = "".join(f"{name:>{widths[name]}}" for name in one.added)
    for column in columns:
        lines.append(f"{column.name:{width}}{'images':>8}{head}")
        rows = [(_shown(column, i), each) for i, each in enumerate(one.groups[column.name])]
        for label, group in [("all", one.every), *rows]:
            cells = "".join(f"{share:>{widths[name]}.2%}" for name, share in group.shares.items())
            lines.append(f"{label:{width}}{group.images:>8}{cells}")
    return lines


def _shown(column: Column, group: int) -> str:
    return str(column.label(group))


def _wide(name: str) -> int:
    return max(len(_TITLES[name]), 7) + 2
