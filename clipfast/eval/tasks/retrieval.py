"""Retrieval on captioned sets of a model in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipfast.eval.captioned import TASK, CaptionRetrieval, retrieve
from clipfast.eval.ranking import RECALL_AT
from clipfast.eval.setencoder import SetEncoder
from clipfast.eval.sets import CaptionedSet, open_captions
from clipfast.eval.tasks.dealing import Job
from clipfast.eval.tasks.limits import drawn
from clipfast.eval.tasks.task import Found, SetTask

_WAYS = {"text_retrieval": "image to text", "image_retrieval": "text to image"}


class RetrievalTask(SetTask):
    """Recalls on images with several captions each."""

    name = "retrieval"
    result_task = TASK

    def open(self, source: str, split: str, words: Mapping[str, Path]) -> CaptionedSet:
        """See ``SetTask``."""
        if words:
            raise ValueError(f"retrieval takes no --eval.{next(iter(words))}: leave it out")
        captioned = open_captions(source, split=split)
        return captioned.take(drawn(len(captioned), self.options.limit))

    def encode(
        self, encoder: SetEncoder, opened: CaptionedSet
    ) -> tuple[list[Job], CaptionRetrieval]:
        """See ``SetTask``."""
        return [], retrieve(encoder, opened, prefix=None)

    def finish(self, opened: CaptionedSet, kept: CaptionRetrieval, done: Sequence[Any]) -> Found:
        """See ``SetTask``."""
        metrics = kept.main.metrics
        sides = "; ".join(
            f"{words} " + " ".join(f"R@{k} {metrics[f'{way}_recall@{k}']:.2%}" for k in RECALL_AT)
            for way, words in _WAYS.items()
        )
        lines = [
            f"retrieval on {kept.images:,} images and {kept.captions:,} captions: {sides}",
        ]
        broken = len(kept.unreadable)
        if broken:
            lines.append(f"  {broken} image(s) do not decode: left out, with captions")
        return Found(
            metrics=metrics, intervals=kept.main.intervals, lines=lines, more=kept.as_json()
        )
