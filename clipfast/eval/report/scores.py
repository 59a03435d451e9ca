"""The one number of a result that counts, and its average over the paper's data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clipfast.eval.report.reading import Result, finite
from clipfast.eval.sets import catalogue

ZERO_SHOT = "zeroshot_classification"
PROBE = "linear_probe"
FEW_SHOT = "few_shot"
RETRIEVAL = "zeroshot_retrieval"
ROBUSTNESS = "robustness"

_TITLES = {
    "acc1": "top-1",
    "acc5": "top-5",
    "mean_per_class_recall": "mean per class",
    "mean_acc1_acc5": "mean of top-1 and top-5",
    "mean_average_precision_11_points": "mAP, 11 points",
    "map_11_point": "mAP, 11 points",
    "mean_average_precision": "mAP",
    "roc_auc": "ROC AUC",
    "mean_corruption_acc1": "top-1, mean of corruptions",
    "reference_acc1": "top-1 on the reference",
    "accuracy": "top-1",
    "mean_per_class": "mean per class",
    "map11": "mAP, 11 points",
}
# What a probe's metrics are called in its result.
_OF_PROBE = {
    "accuracy": "lp_acc1",
    "mean_per_class": "lp_mean_per_class_recall",
    "map11": "lp_map_11_point",
    catalogue.ACCURACY: "lp_acc1",
    catalogue.MEAN_PER_CLASS: "lp_mean_per_class_recall",
    catalogue.ELEVEN_POINT_MAP: "lp_map_11_point",
}
_USUAL = {
    ZERO_SHOT: ("acc1", "mean_average_precision"),
    PROBE: ("lp_acc1",),
    ROBUSTNESS: ("mean_corruption_acc1",),
    RETRIEVAL: tuple(f"image_retrieval_recall@{k}" for k in (1, 5, 10)),
}


@dataclass(frozen=True)
class Score:
    """The number of a result that counts.

    Attributes:
        metric: its key.
        value: a share in [0, 1].
        interval: that holds the true one; None: not measured.
    """

    metric: str
    value: float
    interval: tuple[float, float] | None = None

    @property
    def title(self) -> str:
        """The metric, for a person."""
        return title_of(self.metric)


def title_of(metric: str) -> str:
    """A metric's key, for a person; the key itself where it is not known.

    Args:
        metric: a key of the results.
    """
    name = metric.removeprefix("lp_")
    if name in _TITLES:
        return _TITLES[name]
    for way, words in (("image", "text to image"), ("text", "image to text")):
        if name.startswith(f"{way}_retrieval_recall@"):
            return f"{words} R@{name.rpartition('@')[2]}"
    return metric.replace("_", " ")


def score_of(result: Result) -> Score | None:
    """The metric that the result itself names, else that of the catalogue, else the usual one.

    Args:
        result: of any task.

    Returns:
        None where none of them is a number.
    """
    for metric in _wanted(result):
        value = result.metrics.get(metric)
        if value is not None:
            return Score(metric, value, _interval(result, metric))
    return None


def interval_of(value: object) -> tuple[float, float] | None:
    """Two numbers of a result as an interval; None for all else.

    Args:
        value: as JSON has it.
    """
    if not isinstance(value, list | tuple) or len(value) != 2:
        return None
    low, high = finite(value[0]), finite(value[1])
    return None if low is None or high is None else (low, high)


def paper_average(scores: Mapping[str, float]) -> tuple[float, list[str]] | None:
    """The mean over the data sets of Radford et al. 2021, table 9, and which of them are missing.

    Args:
        scores: by data set, under any of its names.

    Returns:
        None where none of the 27 is there.
    """
    known = {catalogue.plain_name(name): value for name, value in scores.items()}
    paper = catalogue.list_sets("paper")
    found = [known[name] for name in paper if name in known]
    if not found:
        return None
    return sum(found) / len(found), [name for name in paper if name not in known]


def _wanted(result: Result) -> Sequence[str]:
    said = [result.content.get(key) for key in ("main_metric", "chosen_by")]
    entry = catalogue.find_entry(result.dataset)
    names = [name for name in said if isinstance(name, str)]
    if entry is not None and result.task != ROBUSTNESS:
        names.append(entry.metric)
    if result.task == PROBE:
        names = [_OF_PROBE.get(name, name) for name in names]
    if result.task == FEW_SHOT:
        names = [name for name in result.metrics if name.startswith("prior_")][-1:]
    # A result of an unknown task may have but one number.
    return [*names, *_USUAL.get(result.task, ()), *result.metrics]


def _interval(result: Result, metric: str) -> tuple[float, float] | None:
    intervals = result.content.get("intervals")
    return interval_of(intervals.get(metric)) if isinstance(intervals, dict) else None
