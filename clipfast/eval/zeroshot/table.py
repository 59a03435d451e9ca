"""The table of a classification on the terminal."""

from __future__ import annotations

from collections import Counter

from clipfast.eval.zeroshot.classification import Classification

TITLES = {
    "acc1": "top-1",
    "acc5": "top-5",
    "mean_per_class_recall": "per class",
    "mean_acc1_acc5": "mean of both",
    "roc_auc": "ROC AUC",
    "mean_average_precision": "mAP",
    "mean_average_precision_11_points": "mAP, 11 points",
}


def table(found: Classification) -> list[str]:
    """Lines for a person: one row per way to ask, intervals, time.

    Args:
        found: of one set.
    """
    names = [name for name in TITLES if found.main.metrics.get(name) is not None]
    titles = [TITLES[name] for name in names]
    widths = [max(len(title), 7) + 2 for title in titles]
    labels = {
        "names": "names alone",
        "one prompt": "one prompt",
        "ensemble": f"{found.templates} prompt(s)",
    }
    first = max(map(len, labels.values())) + 2
    lines = [f"{found.dataset} ({found.split}, {found.images} images)"]
    header = "".join(f"{title:>{width}}" for title, width in zip(titles, widths, strict=True))
    lines.append(f"{'':{first}}{header}")
    for key, judged in found.prompts.items():
        cells = [judged.metrics[name] for name in names]
        row = "".join(f"{cell:>{width}.2%}" for cell, width in zip(cells, widths, strict=True))
        lines.append(f"{labels[key]:{first}}{row}")
    for name, (low, high) in found.main.intervals.items():
        lines.append(f"{TITLES[name]}: {low:.2%} to {high:.2%} (99.5%, Clopper-Pearson)")
    if found.metric != names[0]:
        lines.append(f"{TITLES[found.metric]} is the metric of this data set")
    twice = Counter(entry["name"] for entry in found.main.per_class)
    same = [f"{name!r}" for name, count in twice.items() if count > 1]
    if same:
        lines.append(f"several classes have the name {', '.join(same[:5])}: only one can be right")
    empty = [entry["name"] for entry in found.main.per_class if not entry["images"]]
    if empty:
        shown = ", ".join(empty[:5])
        lines.append(f"{len(empty)} class(es) without an image are left out of means: {shown}")
    if found.unreadable:
        lines.append(f"{len(found.unreadable)} image(s) do not decode and are left out")
    lines.append(
        f"{found.seconds['images']:.1f} s for images, {found.images_per_second:.0f} images/s; "
        f"{found.seconds['texts']:.1f} s for texts"
    )
    return lines
