"""Few-shot probes of a model in training, beside zero-shot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from clipfast.eval.probe.fewshot import TASK, Curve, few_shot
from clipfast.eval.probe.labels import Targets
from clipfast.eval.probe.linear import Labelled
from clipfast.eval.probe.metrics import check_metric, of_predictions
from clipfast.eval.probe.splits import draw
from clipfast.eval.probe.splitsets import open_splits, usual_metric
from clipfast.eval.ranking import cosines
from clipfast.eval.setencoder import SetEncoder
from clipfast.eval.sets import LabelledSet
from clipfast.eval.tasks.dealing import Job
from clipfast.eval.tasks.limits import drawn
from clipfast.eval.tasks.pictures import shots_figure
from clipfast.eval.tasks.probe import readable
from clipfast.eval.tasks.task import Found, SetTask
from clipfast.eval.zeroshot.classifier import build_classifier

# Of results: a plain probe, and one that is pulled to zero-shot.
_KINDS = {"lp": "probe", "prior": "zero-shot as prior"}
_Splits = Mapping[str, LabelledSet]


@dataclass(frozen=True)
class ShotCurves:
    """What a picture needs.

    Attributes:
        metric: of all of them.
        zero_shot: its value without a probe.
        curves: by kind.
    """

    metric: str
    zero_shot: float
    curves: Mapping[str, Curve]


class FewShotTask(SetTask):
    """Figures 6 and 7 of the paper. Of the train split only the images that are drawn are encoded.
    Every number of shots, draw and kind is a fit of its own; ranks share them."""

    name = "fewshot"
    result_task = TASK

    def open(self, source: str, split: str, words: Mapping[str, Path]) -> dict[str, LabelledSet]:
        """See ``SetTask``."""
        found = open_splits(source, {"train": "train", "test": split}, **words)
        test = found["test"]
        check_metric(usual_metric(test), _targets(test))
        # What would fail once the features are there: a class with too few images.
        draw(_targets(found["train"]), max(self.options.shots), 0, found["train"].classnames)
        return {**found, "test": test.take(drawn(len(test), self.options.limit))}

    def encode(self, encoder: SetEncoder, opened: _Splits) -> tuple[list[Job], ShotCurves]:
        """See ``SetTask``."""
        test = opened["test"]
        metric = check_metric(usual_metric(test), _targets(test))
        classifier = build_classifier(encoder, test.classnames, test.templates)
        sides: dict[str, tuple[Labelled, Labelled]] = {}
        for kind, layer in (("lp", "penultimate"), ("prior", "projected")):
            train = self._drawn_features(encoder, opened["train"], layer)
            held = readable(test, encoder.images(test, layer))  # type: ignore[arg-type]
            sides[kind] = (train, held) if kind == "lp" else (_unit(train), _unit(held))
        projected = sides["prior"][1]
        predicted = cosines(torch.from_numpy(projected.features), classifier).argmax(1)
        targets = Targets(torch.from_numpy(projected.labels), len(test.classnames))
        zero_shot = of_predictions(metric, predicted, targets)
        priors = {"lp": None, "prior": encoder.scale * classifier}
        jobs: list[Job] = [
            partial(
                few_shot,
                *sides[kind],
                shots=[shots],
                seeds=[seed],
                classnames=test.classnames,
                prior=priors[kind],
                metric=metric,
                device=encoder.device,
                on_pass=encoder.alive,
            )
            for kind, shots, seed in self._grid()
        ]
        return jobs, ShotCurves(metric, zero_shot, {})

    def finish(self, opened: _Splits, kept: ShotCurves, done: Sequence[Any]) -> Found:
        """See ``SetTask``."""
        shots, seeds = tuple(sorted(set(self.options.shots))), tuple(self.options.seeds)
        by_place = dict(zip(self._grid(), done, strict=True))
        curves = {
            kind: Curve(
                kept.metric,
                shots,
                seeds,
                tuple(tuple(by_place[kind, k, s].scores[0][0] for s in seeds) for k in shots),
                tuple(tuple(by_place[kind, k, s].steps[0][0] for s in seeds) for k in shots),
                sum(by_place[kind, k, s].late for k in shots for s in seeds),
            )
            for kind in _KINDS
        }
        metrics: dict[str, float | None] = {f"zeroshot_{kept.metric}": kept.zero_shot}
        lines = [f"few images per class ({kept.metric}): zero-shot {kept.zero_shot:.2%}"]
        for kind, curve in curves.items():
            means = dict(zip(shots, curve.means, strict=True))
            metrics |= {f"{kind}_{kept.metric}_{k}_shot": mean for k, mean in means.items()}
            cells = ", ".join(f"{k}: {mean:.2%}" for k, mean in means.items())
            lines.append(f"  {_KINDS[kind]}: {cells}")
        more = {_KINDS[kind]: curve.as_json(kept.zero_shot) for kind, curve in curves.items()}
        return Found(
            metrics=metrics,
            lines=lines,
            more={"split": opened["test"].split, "metric": kept.metric, **more},
            kept=ShotCurves(kept.metric, kept.zero_shot, curves),
        )

    def figure(self, measured: Sequence[Any], path: Path) -> bool:
        """Scores by images per class, set beside set."""
        shots_figure(
            {
                one.label: (
                    one.found.kept.metric,
                    one.found.kept.zero_shot,
                    {_KINDS[kind]: curve for kind, curve in one.found.kept.curves.items()},
                )
                for one in measured
            },
            path,
        )
        return True

    def _grid(self) -> list[tuple[str, int, int]]:
        """The most work first, so that ranks end together."""
        shots = sorted(set(self.options.shots), reverse=True)
        return [(kind, k, s) for k in shots for kind in _KINDS for s in self.options.seeds]

    def _drawn_features(self, encoder: SetEncoder, train: LabelledSet, layer: Any) -> Labelled:
        """Features of the images that some draw takes, in their places; nobody reads the others."""
        targets, most = _targets(train), max(self.options.shots)
        places = np.unique(np.concatenate([draw(targets, most, s) for s in self.options.seeds]))
        part = train.take(places)
        found = readable(part, encoder.images(part, layer))
        if len(found.labels) < len(places):
            broken = ", ".join(str(places[i]) for i in sorted(encoder.unreadable)[:5])
            raise ValueError(f"{train.name}, train: images {broken} were drawn and do not decode")
        every = np.zeros((len(train), found.features.shape[1]), np.float16)
        every[places] = found.features
        return Labelled(every, train.labels)


def _targets(images: LabelledSet) -> Targets:
    return Targets(torch.from_numpy(images.labels), len(images.classnames))


def _unit(one: Labelled) -> Labelled:
    features: Tensor = F.normalize(torch.from_numpy(one.features).float(), dim=1)
    return Labelled(features.numpy(), one.labels)
