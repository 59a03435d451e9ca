"""The splits of a set that a probe needs, and the metric that its authors use."""

from __future__ import annotations

from pathlib import Path

from clipfast.eval.probe.metrics import ACCURACY, MAP11, MEAN_PER_CLASS
from clipfast.eval.sets import LabelledSet, catalogue, open_set

_METRICS = {
    catalogue.ACCURACY: ACCURACY,
    catalogue.MEAN_PER_CLASS: MEAN_PER_CLASS,
    catalogue.ELEVEN_POINT_MAP: MAP11,
}


def open_splits(
    data: str,
    splits: dict[str, str],
    *,
    classnames: Path | None = None,
    templates: Path | None = None,
) -> dict[str, LabelledSet]:
    """Open several splits of one set.

    Args:
        data: see ``open_set``.
        splits: what each is for, and its name: ``{"train": "train", "test": "test"}``.
        classnames: see ``open_set``.
        templates: see ``open_set``.

    Returns:
        By what they are for.

    Raises:
        ValueError: see ``open_set``; or two splits have other classes.
    """
    found = {
        what: open_set(data, split=name, classnames=classnames, templates=templates)
        for what, name in splits.items()
    }
    test = found["test"]
    for what, one in found.items():
        if one.classnames == test.classnames:
            continue
        pairs = zip(one.classnames, test.classnames, strict=False)
        odd = next((pair for pair in pairs if pair[0] != pair[1]), None)
        told = f"{len(one.classnames)} and {len(test.classnames)}"
        told = f"{odd[0]!r} and {odd[1]!r}" if odd else f"{told} of them"
        raise ValueError(
            f"{data}: splits {splits[what]!r} and {splits['test']!r} have other classes ({told}): "
            "give both the same with --classnames"
        )
    return found


def usual_metric(images: LabelledSet) -> str | None:
    """The metric that table 9 has for a set, where a probe has it.

    Args:
        images: its name is looked up.

    Returns:
        One of ``METRICS``; None: the usual one of its labels.
    """
    entry = catalogue.find_entry(images.name)
    metric = None if entry is None else _METRICS.get(entry.metric)
    is_several = images.labels.ndim == 2
    return metric if metric is None or (metric == MAP11) == is_several else None
