"""``overlap``: which evaluation images a training set holds."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from clipfast.curate.commands.options import (
    add_detector_options,
    add_engine_options,
    path_of,
    similarity,
)
from clipfast.curate.engine import write_table
from clipfast.curate.engine.parts import arrow
from clipfast.curate.near.chosen import choose_detector
from clipfast.curate.near.find import Work
from clipfast.curate.overlap.answers import read_answers
from clipfast.curate.overlap.evalset import EvalSet, eval_sets
from clipfast.curate.overlap.measure import measure
from clipfast.curate.overlap.page import page
from clipfast.curate.overlap.result import SetOverlap, as_json, tests_of
from clipfast.curate.overlap.statistics import effect, significant
from clipfast.curate.shards import Shard, shards_of
from clipfast.storage import storage_of
from clipfast.storage.paths import join


def add(subparsers: Any) -> None:
    """Add the subcommand.

    Args:
        subparsers: of the command line.
    """
    text = "find evaluation images in a training set, and what they add to accuracy"
    parser = subparsers.add_parser("overlap", help=text, description=text)
    parser.add_argument(
        "sets", nargs="+", help="evaluation sets, as clipfast.eval zeroshot --data takes them"
    )
    parser.add_argument("--split", default="test", help="of the sets (test)")
    parser.add_argument(
        "--train", nargs="+", required=True, help="shards, as --data.train takes them"
    )
    add_detector_options(parser)
    parser.add_argument(
        "--threshold",
        nargs="+",
        required=True,
        metavar="[NAME=]T",
        help="similarity from which an image overlaps; with a name, for the set of that name",
    )
    parser.add_argument(
        "--answers",
        nargs="+",
        default=[],
        metavar="[NAME=]FILE",
        help="what clipfast.eval zeroshot --answers has written; with the set's name if several",
    )
    parser.add_argument("--out", required=True, help="folder of the table, the pairs and the page")
    add_engine_options(parser)


def run(options: argparse.Namespace) -> None:
    """Write table, pairs and page.

    Args:
        options: as parsed.

    Raises:
        ValueError: a set, shards, answers or the detector cannot be read.
        OSError: a file cannot be read or written.
    """
    began = time.perf_counter()
    out = path_of(options.out)
    shards = shards_of(options.train)
    sets = eval_sets(options.sets, options.split)
    names = [images.name for images in sets]
    limits = _thresholds(options.threshold, names)
    answers = {images.name: _answers(options.answers, images, names) for images in sets}
    detector = choose_detector(options.detector, options.device)
    work = Work(join(out, "parts"), options.engine, options.workers)
    mirrored = options.flips == "same"
    results = measure(work, sets, shards, detector, limits, mirrored, options.threads)
    results = [_judged(one, answers[one.images.name]) for one in results]
    samples = sum(shard.samples for shard in shards)
    storage_of(out).make_folder(out)
    found = as_json(results, options.detector, samples)
    _write(join(out, "overlap.json"), json.dumps(found, indent=1))
    _write(join(out, "overlap.html"), page(results, shards, options.detector, samples))
    _write_pairs(join(out, "pairs.parquet"), results, shards)
    tests = tests_of(results)
    for one in results:
        print(_line(one, tests))
    print(f"written: {out} ({time.perf_counter() - began:.1f} s)")


def _named(words: Sequence[str], names: Sequence[str], option: str) -> dict[str | None, str]:
    """By the name of a set, what was given for it; None: for all others."""
    found: dict[str | None, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        known = bool(equals) and name in names
        if equals and not known and option == "--threshold":
            raise ValueError(f"--threshold {word}: no set is called {name!r}: {', '.join(names)}")
        key = name if known else None
        if key in found:
            whose = f"set {key}" if known else "the sets without a name"
            raise ValueError(f"{option} is given twice for {whose}; sets: {', '.join(names)}")
        found[key] = value if known else word
    return found


def _thresholds(words: Sequence[str], names: Sequence[str]) -> list[float]:
    given = _named(words, names, "--threshold")
    missing = [name for name in names if name not in given and None not in given]
    if missing:
        raise ValueError(f"--threshold: none for {', '.join(missing)}; give T, or NAME=T for each")
    try:
        return [similarity(given.get(name, given.get(None, ""))) for name in names]
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"--threshold: {error}") from None


def _answers(words: Sequence[str], images: EvalSet, names: Sequence[str]) -> Any:
    given = _named(words, names, "--answers")
    if None in given and len(names) > 1:
        raise ValueError(
            f"--answers {given[None]}: of which set? Write NAME={given[None]}, with a NAME of "
            f"{', '.join(names)}"
        )
    path = given.get(images.name, given.get(None))
    return None if path is None else read_answers(path_of(path), images.images)


def _judged(one: SetOverlap, answers: Any) -> SetOverlap:
    """With the effect on the model whose answers these are, on images that have both."""
    if answers is None:
        return one
    correct = dict(zip(answers[0].tolist(), answers[1].tolist(), strict=True))
    has = np.array([place in correct for place in one.place.tolist()], bool)
    right = np.array([correct[place] for place in one.place[has].tolist()], bool)
    return replace(one, effect=effect(right, one.overlaps[has]))


def _line(one: SetOverlap, tests: int) -> str:
    line = (
        f"{one.images.name}: {int(one.overlaps.sum()):,} of {len(one.place):,} images overlap "
        f"({one.contamination:.2%}) at {one.threshold:g}"
    )
    found = one.effect
    if found is None:
        return line
    shares = (found.all.share, found.overlap.share, found.clean.share)
    said = " / ".join("none" if share is None else f"{share:.2%}" for share in shares)
    line += f"; accuracy on All / Overlap / Clean {said}"
    if found.p_value is None or found.gain is None:
        return line
    kind = significant(found.p_value, tests)
    return f"{line}; All - Clean {100 * found.gain:+.2f}, p {found.p_value:.3g} ({kind})"


def _write(path: str, text: str) -> None:
    storage_of(path).write_atomic(path, text.encode("utf-8", "replace"))


def _write_pairs(path: str, results: Sequence[SetOverlap], shards: Sequence[Shard]) -> None:
    """Columns dataset, image, shard, row, similarity and overlaps: the nearest of each image."""
    pa = arrow()
    names = pa.array([shard.name for shard in shards], pa.string())
    tables = [
        pa.table(
            {
                "dataset": pa.array([one.images.name] * len(one.place), pa.string()),
                "image": one.place,
                "shard": names.take(pa.array(one.shard)),
                "row": one.row,
                "similarity": one.similarity,
                "overlaps": one.overlaps,
            }
        )
        for one in results
    ]
    write_table(path, pa.concat_tables(tables))
