"""Zero-shot classification of a model in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipfast.eval.setencoder import SetEncoder
from clipfast.eval.sets import LabelledSet, open_set
from clipfast.eval.tasks.dealing import Job
from clipfast.eval.tasks.limits import drawn
from clipfast.eval.tasks.pictures import classes_figure
from clipfast.eval.tasks.task import Found, SetTask
from clipfast.eval.zeroshot.classification import TASK, Classification, classify
from clipfast.eval.zeroshot.examples import write_examples
from clipfast.eval.zeroshot.table import TITLES

_EXAMPLES = 12


class ZeroShotTask(SetTask):
    """Accuracy by the names of classes. The classifier is built anew each time: weights move."""

    name = "zeroshot"
    result_task = TASK

    def open(self, source: str, split: str, words: Mapping[str, Path]) -> LabelledSet:
        """See ``SetTask``."""
        images = open_set(source, split=split, **words)
        return images.take(drawn(len(images), self.options.limit))

    def encode(self, encoder: SetEncoder, opened: LabelledSet) -> tuple[list[Job], Classification]:
        """See ``SetTask``."""
        return [], classify(encoder, opened, None, _EXAMPLES, ("ensemble",))

    def finish(self, opened: LabelledSet, kept: Classification, done: Sequence[Any]) -> Found:
        """See ``SetTask``."""
        metrics, intervals = kept.main.metrics, kept.main.intervals
        cells = []
        for name, title in TITLES.items():
            value = metrics.get(name)
            if value is None:
                continue
            cells.append(f"{title} {value:.2%}")
            if name in intervals:
                low, high = intervals[name]
                cells[-1] += f" ({low:.2%} to {high:.2%})"
        lines = [f"zero-shot on {kept.images:,} images: {', '.join(cells)}"]
        if kept.unreadable:
            lines.append(f"  {len(kept.unreadable)} image(s) do not decode and are left out")

        def beside(path: Path) -> Mapping[str, Any]:
            return {"examples": write_examples(kept.examples, opened.encoded, path)}

        return Found(
            metrics=metrics,
            intervals=intervals,
            lines=lines,
            more=kept.as_json(),
            beside=beside,
            kept=kept,
        )

    def figure(self, measured: Sequence[Any], path: Path) -> bool:
        """What becomes of each class, set beside set."""
        mains = {one.label: one.found.kept.main for one in measured}
        # Of images with several classes there is no table.
        judged = {label: main for label, main in mains.items() if main.intervals}
        if judged:
            classes_figure(judged, path)
        return bool(judged)
