"""``robustness``: what is left of an accuracy on images from elsewhere."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipfast.eval.commands.options import (
    add_cache_option,
    add_model_options,
    add_output_options,
    add_set_options,
    begin,
    cache_of,
    encoder_of,
    require_same,
    set_of,
)
from clipfast.eval.commands.probe import add_probe_options
from clipfast.eval.encoding import ImageEncoder
from clipfast.eval.probe.features import FeatureCache
from clipfast.eval.probe.linear import linear_probe
from clipfast.eval.probe.splitsets import open_splits, usual_metric
from clipfast.eval.robustness.baselines import TASK, Baseline, read_baselines, read_results
from clipfast.eval.robustness.classmap import read_mapping
from clipfast.eval.robustness.compare import compare
from clipfast.eval.robustness.measure import (
    Adapted,
    Score,
    adapted_scores,
    features_to_adapt,
    measure,
)
from clipfast.eval.robustness.result import as_json, metrics_of, table
from clipfast.eval.robustness.shifts import Shift, evenly, open_shifts
from clipfast.eval.sets import LabelledSet

SHARES_WORK = True


def add(subparsers: Any) -> None:
    """Add the subcommand.

    Args:
        subparsers: of the command line.
    """
    text = "compare the accuracy on a set with that on shifts of it"
    parser = subparsers.add_parser("robustness", help=text, description=text)
    add_model_options(parser)
    add_set_options(parser)
    group = parser.add_argument_group("shifts")
    group.add_argument(
        "--shifts",
        nargs="+",
        required=True,
        metavar="SHIFT",
        help="a set with classes of --data, as --data; or corrupted[:NAME[:SEVERITY]]",
    )
    group.add_argument("--shift-split", default="test", help="split of the shifts")
    group.add_argument(
        "--mapping",
        nargs="+",
        default=(),
        metavar="SHIFT=FILE",
        help="JSON from each class of a shift to classes of --data",
    )
    group.add_argument("--corruption-seed", type=int, default=0, help="of corruptions")
    group.add_argument(
        "--limit", type=int, help="images of each set, spread evenly over it; default: all"
    )
    group = parser.add_argument_group("baselines")
    group.add_argument(
        "--baselines",
        type=Path,
        help="table with the columns model, shift, reference_acc1 and shift_acc1",
    )
    group.add_argument(
        "--baseline-results",
        type=Path,
        nargs="+",
        default=(),
        metavar="FILE",
        help="results of this task of other models",
    )
    group.add_argument("--relative-to", help="the baseline that relative robustness is a gain over")
    group = parser.add_argument_group("adapted")
    group.add_argument(
        "--adapted", action="store_true", help="beside zero-shot a linear probe, fitted to --data"
    )
    add_probe_options(parser)
    add_output_options(parser)
    add_cache_option(parser)
    parser.add_argument("--plot", type=Path, help="PNG of the scatter plot; needs matplotlib")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Measure reference and shifts, print a table, and write the result.

    Args:
        options: as parsed.

    Returns:
        What the file of the result holds.

    Raises:
        ValueError: data or weights cannot be read or do not fit.
        OSError: the result cannot be written.
        ImportError: a plot is asked for, and matplotlib is not installed.
    """
    reference = set_of(options)
    file, loaded, existing = begin(options, reference.name, TASK)
    if loaded is None:
        _require_same(options, file.path, existing, _shifts(options, reference, None))
        return existing
    encoder = encoder_of(options, loaded)
    shifts = _shifts(options, reference, encoder.preprocessing.image_size)
    baselines = _baselines(options, reference, shifts)
    compare((), baselines, options.relative_to)  # refuses before there is any work
    reference = evenly(reference, options.limit)
    shifts = [replace(one, images=evenly(one.images, options.limit)) for one in shifts]
    cache = cache_of(options)
    found = measure(encoder, reference, shifts, cache)
    adapted = _adapted(options, encoder, reference, shifts) if options.adapted else ()
    scores, fits = compare(_together(found.scores, adapted), baselines, options.relative_to)
    found = replace(found, scores=scores)
    metrics = metrics_of(found)
    more = {**as_json(found, fits, baselines), "limit": options.limit, "resize": options.resize}
    if encoder.sharing.rank:
        return {"metrics": metrics, **more}
    written = file.write(metrics, more)
    print(*table(found, fits), f"written: {file.path}", sep="\n")
    if options.plot is not None:
        from clipfast.eval.robustness.figure import robustness_figure

        options.plot.parent.mkdir(parents=True, exist_ok=True)
        robustness_figure(written, options.plot)
        print(f"drawn: {options.plot}")
    return written


def _shifts(
    options: argparse.Namespace, reference: LabelledSet, at_most: int | None
) -> list[Shift]:
    return open_shifts(
        options.shifts,
        reference,
        split=options.shift_split,
        mappings=dict(map(_mapping, options.mapping)),
        seed=options.corruption_seed,
        at_most=at_most,
    )


def _require_same(
    options: argparse.Namespace, path: Path, existing: dict[str, Any], shifts: list[Shift]
) -> None:
    """Refuse to take a result of other shifts for this one."""
    there = existing.get("shifts", [])
    differing = {
        "shifts": {one["dataset"] for one in there} != {shift.images.name for shift in shifts},
        "--limit": existing.get("limit") != options.limit,
        "--adapted": any(one["classifier"] == "adapted" for one in there) != options.adapted,
    }
    require_same(path, differing)


def _mapping(text: str) -> tuple[str, dict[str, list[str | int]]]:
    name, is_cut, path = text.partition("=")
    if not is_cut or not name or not path:
        raise ValueError(f"--mapping {text!r}: write SHIFT=FILE")
    return name, read_mapping(Path(path))


def _baselines(
    options: argparse.Namespace, reference: LabelledSet, shifts: list[Shift]
) -> list[Baseline]:
    names = [shift.images.name for shift in shifts]
    found = [] if options.baselines is None else read_baselines(options.baselines, names)
    found += read_results(options.baseline_results, reference.name)
    return [one for one in found if any(one.is_of(name) for name in names)]


def _adapted(
    options: argparse.Namespace,
    encoder: ImageEncoder,
    reference: LabelledSet,
    shifts: list[Shift],
) -> tuple[Score, ...]:
    """The scores of the probe; none on other ranks than the first."""
    if options.train_split == options.split:
        raise ValueError(
            f"--train-split {options.train_split!r} is what is tested, too: name another one"
        )
    train = open_splits(
        options.data,
        {"train": options.train_split, "test": options.split},
        classnames=options.classnames,
        templates=options.templates,
    )["train"]
    cache = FeatureCache(options.features or options.out / "features")
    sets = [train, reference, *(shift.images for shift in shifts)]
    train_features, test_features, *others = features_to_adapt(encoder, cache, sets)
    if encoder.sharing.rank:
        return ()
    probe = linear_probe(
        train_features,
        test_features,
        classnames=reference.classnames,
        metric=options.metric or usual_metric(reference),
        how=options.search,
        tolerance=options.tolerance,
        device=encoder.device,
    )
    print(*probe.lines, sep="\n")
    return adapted_scores(Adapted(probe, test_features, others), reference, shifts)


def _together(scores: tuple[Score, ...], adapted: tuple[Score, ...]) -> tuple[Score, ...]:
    """Shifts in their order, the adapted classifier behind the others of each."""
    order = {name: i for i, name in enumerate(dict.fromkeys(one.dataset for one in scores))}
    return tuple(sorted((*scores, *adapted), key=lambda one: order[one.dataset]))
