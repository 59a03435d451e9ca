"""All results as one table: CLIP_benchmark's columns, and ours behind them."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipfast.eval.report.reading import Result
from clipfast.eval.report.scores import score_of

_FIRST = ("dataset", "model", "pretrained", "task", "language")
_LAST = ("model_fullname", "main_metric", "main_value", "low", "high", "images", "split", "file")


def csv_of(results: Sequence[Result], folder: Path) -> bytes:
    """One row per result.

    Args:
        results: in the order of the rows.
        folder: that paths start from.

    Returns:
        UTF-8, a head, lines that end as RFC 4180 says. What is undefined is empty.
    """
    metrics = sorted({name for result in results for name in result.metrics})
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, [*_FIRST, *(m for m in metrics if m not in _FIRST), *_LAST])
    writer.writeheader()
    for result in results:
        writer.writerow(_row(result, folder))
    return out.getvalue().encode("utf-8", "replace")


def _row(result: Result, folder: Path) -> dict[str, Any]:
    row: dict[str, Any] = dict(result.metrics)
    row |= {key: getattr(result, key) for key in _FIRST}
    row["model_fullname"] = f"{result.model} {result.pretrained}"
    score = score_of(result)
    if score is not None:
        row |= {"main_metric": score.metric, "main_value": score.value}
        if score.interval is not None:
            row["low"], row["high"] = score.interval
    row["images"] = images_of(result)
    split = result.content.get("split")
    row["split"] = split if isinstance(split, str) else None
    row["file"] = result.path.relative_to(folder).as_posix()
    return row


def images_of(result: Result) -> int | None:
    """How many images the result is of; None where it does not say.

    Args:
        result: of any task.
    """
    for key in ("images", "test_images"):
        count = result.content.get(key)
        if isinstance(count, int) and not isinstance(count, bool):
            return count
    return None
