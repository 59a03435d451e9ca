"""``fewshot``: linear classifiers on a few images per class, beside zero-shot."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from clipfast.eval.commands.options import (
    add_model_options,
    add_output_options,
    add_set_options,
    begin,
    encoder_of,
)
from clipfast.eval.commands.probe import add_probe_options
from clipfast.eval.probe.features import FeatureCache
from clipfast.eval.probe.fewshot import SHOTS, TASK, Curve, few_shot, shots_to_match
from clipfast.eval.probe.labels import Targets
from clipfast.eval.probe.linear import Labelled
from clipfast.eval.probe.metrics import check_metric, of_predictions
from clipfast.eval.probe.splitsets import open_splits, usual_metric
from clipfast.eval.ranking import cosines
from clipfast.eval.zeroshot.cache import ClassifierCache

SHARES_WORK = True


def add(subparsers: Any) -> None:
    """Add the subcommand.

    Args:
        subparsers: of the command line.
    """
    text = "fit linear classifiers to a few images per class, and compare them with zero-shot"
    parser = subparsers.add_parser("fewshot", help=text, description=text)
    add_model_options(parser)
    add_set_options(parser)
    add_probe_options(parser)
    group = parser.add_argument_group("few shots")
    group.add_argument("--shots", type=int, nargs="+", default=SHOTS, help="images per class")
    group.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2), help="of the draws")
    add_output_options(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Encode the splits, fit, print the curves, and write the result.

    Args:
        options: as parsed.

    Returns:
        What the file of the result holds.

    Raises:
        ValueError: data or weights cannot be read or do not fit.
        OSError: features or result cannot be written.
    """
    sets = open_splits(
        options.data,
        {"train": options.train_split, "test": options.split},
        classnames=options.classnames,
        templates=options.templates,
    )
    test = sets["test"]
    file, loaded, existing = begin(options, test.name, TASK)
    if loaded is None:
        return existing
    encoder = encoder_of(options, loaded)
    cache = FeatureCache(options.features or options.out / "features")
    deep, projected = (
        {
            what: cache.features(encoder, one, layer).labelled(one.labels)
            for what, one in sets.items()
        }
        for layer in ("penultimate", "projected")
    )
    projected = {what: _normalised(one) for what, one in projected.items()}
    classifier = ClassifierCache(options.out / "classifiers").classifier(
        encoder, test.name, test.classnames, test.templates
    )
    if encoder.sharing.rank:
        return {}
    targets = Targets(torch.as_tensor(projected["test"].labels), len(test.classnames))
    metric = check_metric(options.metric or usual_metric(test), targets)
    predicted = cosines(projected["test"].features, classifier).argmax(1)
    zero_shot = of_predictions(metric, predicted, targets)
    scale = float(encoder.model.logit_scale.detach().double().exp())
    plain, with_prior = (
        few_shot(
            features["train"],
            features["test"],
            shots=options.shots,
            seeds=options.seeds,
            classnames=test.classnames,
            prior=prior,
            metric=metric,
            how=options.search,
            tolerance=options.tolerance,
            device=encoder.device,
        )
        for features, prior in ((deep, None), (projected, scale * classifier))
    )
    found = {"probe": plain, "zero-shot as prior": with_prior}
    metrics: dict[str, float | None] = {f"zeroshot_{metric}": zero_shot}
    for name, curve in (("lp", plain), ("prior", with_prior)):
        for shots, mean in zip(curve.shots, curve.means, strict=True):
            metrics[f"{name}_{metric}_{shots}_shot"] = mean
    more = {name: curve.as_json(zero_shot) for name, curve in found.items()}
    written = file.write(
        metrics, {"split": test.split, "resize": options.resize, "metric": metric, **more}
    )
    print(f"{test.name} ({test.split}), few images per class: {metric} over seeds {options.seeds}")
    print(*_table(found, zero_shot), f"written: {file.path}", sep="\n")
    return written


def _normalised(one: Labelled) -> Labelled:
    return Labelled(
        F.normalize(torch.from_numpy(np.array(one.features)).float(), dim=1), one.labels
    )


def _table(found: dict[str, Curve], zero_shot: float) -> list[str]:
    width = max(map(len, found)) + 4
    lines = ["images per class" + "".join(f"{name:>{width}}" for name in found)]
    for i, shots in enumerate(next(iter(found.values())).shots):
        cells = [f"{c.means[i]:.2%} +- {c.deviations[i]:.2%}" for c in found.values()]
        lines.append(f"{shots:>16}" + "".join(f"{cell:>{width}}" for cell in cells))
    lines.append(f"zero-shot: {zero_shot:.2%}")
    for name, curve in found.items():
        needed = shots_to_match(curve, zero_shot)
        told = f"more than {curve.shots[-1]}" if needed is None else f"{needed:.1f}"
        if needed == curve.shots[0]:
            told = f"{needed:.0f} or fewer"
        lines.append(f"{name}: as good as zero-shot with {told} images per class")
    return lines
