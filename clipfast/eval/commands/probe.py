"""``probe``: a linear classifier on the features of a set."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from clipfast.eval.commands.options import (
    add_model_options,
    add_output_options,
    add_set_options,
    begin,
    encoder_of,
)
from clipfast.eval.probe.features import FeatureCache
from clipfast.eval.probe.linear import TASK, linear_probe
from clipfast.eval.probe.metrics import METRICS
from clipfast.eval.probe.splitsets import open_splits, usual_metric

SHARES_WORK = True


def add(subparsers: Any) -> None:
    """Add the subcommand.

    Args:
        subparsers: of the command line.
    """
    text = "fit a linear classifier to the features of a set"
    parser = subparsers.add_parser("probe", help=text, description=text)
    add_model_options(parser)
    add_set_options(parser)
    add_probe_options(parser)
    group = parser.add_argument_group("probe")
    group.add_argument(
        "--validation-split",
        help="split that lambda is chosen on; default: a part of the train split",
    )
    group.add_argument(
        "--validation-share", type=float, default=0.2, help="of the train split, where it is cut"
    )
    group.add_argument("--seed", type=int, default=0, help="of that cut")
    add_output_options(parser)


def add_probe_options(parser: argparse.ArgumentParser) -> None:
    """What probes have in common.

    Args:
        parser: of a subcommand.
    """
    group = parser.add_argument_group("probe")
    group.add_argument("--train-split", default="train", help="split that is learned from")
    group.add_argument("--metric", choices=METRICS, help="default: the set's own")
    group.add_argument(
        "--search",
        choices=("search", "sweep"),
        default="search",
        help="for lambda: the paper's search, or all 97 of them",
    )
    group.add_argument("--tolerance", type=float, default=1e-4, help="of the largest gradient")
    group.add_argument(
        "--features", type=Path, help="folder of features; default: `features` in --out"
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Encode the splits, fit, and write the result.

    Args:
        options: as parsed.

    Returns:
        What the file of the result holds.

    Raises:
        ValueError: data or weights cannot be read or do not fit.
        OSError: features or result cannot be written.
    """
    splits = {"train": options.train_split, "test": options.split}
    if options.validation_split is not None:
        splits["validation"] = options.validation_split
    sets = open_splits(
        options.data, splits, classnames=options.classnames, templates=options.templates
    )
    test = sets["test"]
    file, loaded, existing = begin(options, test.name, TASK)
    if loaded is None:
        return existing
    encoder = encoder_of(options, loaded)
    cache = FeatureCache(options.features or options.out / "features")
    labelled = {
        what: cache.features(encoder, one, "penultimate").labelled(one.labels)
        for what, one in sets.items()
    }
    found = linear_probe(
        labelled["train"],
        labelled["test"],
        labelled.get("validation"),
        classnames=test.classnames,
        metric=options.metric or usual_metric(test),
        share=options.validation_share,
        seed=options.seed,
        how=options.search,
        tolerance=options.tolerance,
        device=encoder.device,
        sharing=encoder.sharing,
    )
    metrics, more = found.as_json()
    more = {"split": test.split, "resize": options.resize, **more}
    if encoder.sharing.rank:
        return {"metrics": metrics, **more}
    written = file.write(metrics, more)
    print(f"{test.name} ({test.split}), linear probe")
    print(*found.lines, f"written: {file.path}", sep="\n")
    return written
