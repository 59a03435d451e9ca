"""The linear probe of a model in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipfast.eval.probe.features import half
from clipfast.eval.probe.labels import Targets
from clipfast.eval.probe.linear import TASK, Labelled, LinearProbe, linear_probe
from clipfast.eval.probe.splits import cut
from clipfast.eval.probe.splitsets import open_splits, usual_metric
from clipfast.eval.setencoder import SetEncoder
from clipfast.eval.sets import LabelledSet
from clipfast.eval.tasks.dealing import Job
from clipfast.eval.tasks.limits import drawn
from clipfast.eval.tasks.task import Found, SetTask

_SHARE, _SEED = 0.2, 0
_Splits = Mapping[str, LabelledSet]


class ProbeTask(SetTask):
    """Appendix A.3 of the paper. Ranks encode together and share the search for lambda."""

    name = "probe"
    result_task = TASK

    def open(self, source: str, split: str, words: Mapping[str, Path]) -> dict[str, LabelledSet]:
        """See ``SetTask``."""
        found = open_splits(source, {"train": "train", "test": split}, **words)
        parts = {what: one.take(drawn(len(one), self.options.limit)) for what, one in found.items()}
        train = parts["train"]
        # What would fail once the features are there.
        cut(Targets(torch.from_numpy(train.labels), len(train.classnames)), _SHARE, _SEED)
        if train.labels.ndim == 1 and len(np.unique(train.labels)) < 2:
            raise ValueError("its train split has images of one class alone: a probe needs two")
        return parts

    def encode(self, encoder: SetEncoder, opened: _Splits) -> tuple[list[Job], LinearProbe]:
        """See ``SetTask``."""
        train, test = (
            readable(opened[what], encoder.images(opened[what], "penultimate"))
            for what in ("train", "test")
        )
        found = linear_probe(
            train,
            test,
            classnames=opened["test"].classnames,
            metric=usual_metric(opened["test"]),
            share=_SHARE,
            seed=_SEED,
            device=encoder.device,
            on_pass=encoder.alive,
            sharing=encoder.sharing,
            between=encoder.between,
        )
        return [], found

    def finish(self, opened: _Splits, kept: LinearProbe, done: Sequence[Any]) -> Found:
        """See ``SetTask``."""
        metrics, more = kept.as_json()
        first, *others = kept.lines
        return Found(
            metrics=metrics,
            intervals=more["intervals"],
            lines=[f"linear probe: {first}", *(f"  {line}" for line in others)],
            more={"split": opened["test"].split, **more},
        )


def readable(images: LabelledSet, features: Tensor) -> Labelled:
    """Features of the images that decode, in half precision as they are on disk elsewhere.

    Args:
        images: the set.
        features: ``[N, D]``; rows of images that do not decode are NaN.

    Raises:
        ValueError: see ``half``.
    """
    halved = half(images, features.numpy())
    kept = ~np.isnan(halved[:, 0])
    return Labelled(halved[kept], images.labels[kept])
