"""``zeroshot``: classification by the names of classes."""

from __future__ import annotations

import argparse
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
    set_of,
)
from clipfast.eval.zeroshot.classification import TASK, classify
from clipfast.eval.zeroshot.examples import MOST_EXAMPLES, write_examples
from clipfast.eval.zeroshot.peranswer import write_answers
from clipfast.eval.zeroshot.table import table

SHARES_WORK = True


def add(subparsers: Any) -> None:
    """Add the subcommand.

    Args:
        subparsers: of the command line.
    """
    text = "classify images by the names of their classes"
    parser = subparsers.add_parser("zeroshot", help=text, description=text)
    add_model_options(parser)
    add_set_options(parser)
    add_output_options(parser)
    add_cache_option(parser)
    parser.add_argument(
        "--examples",
        type=int,
        default=12,
        metavar="N",
        help="single images with their likeliest classes, for the report; 0: none",
    )
    parser.add_argument(
        "--answers",
        type=Path,
        metavar="FILE",
        help="write the answer on each image, as CSV or .parquet",
    )


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Classify, print a table, and write the result.

    Args:
        options: as parsed.

    Returns:
        What the file of the result holds.

    Raises:
        ValueError: data or weights cannot be read or do not fit.
        OSError: the result cannot be written.
    """
    if not 0 <= options.examples <= MOST_EXAMPLES:
        raise ValueError(f"--examples is 0 to {MOST_EXAMPLES}; got {options.examples}")
    images = set_of(options)
    if options.answers is not None and images.labels.ndim == 2:
        raise ValueError(
            f"--answers: images of {images.name} have several classes, and none is the right one"
        )
    file, loaded, existing = begin(options, images.name, TASK)
    if loaded is None:
        return existing
    encoder = encoder_of(options, loaded)
    cache = cache_of(options)
    found = classify(encoder, images, cache, options.examples)
    more = {**found.as_json(), "resize": options.resize}
    if encoder.sharing.rank:
        return {"metrics": found.main.metrics, **more}
    if options.answers is not None and found.main.predicted is not None:
        about = found.places, found.labels, found.main.predicted, images.classnames
        write_answers(options.answers, *about)
    pictures = write_examples(found.examples, images.encoded, file.path)
    written = file.write(found.main.metrics, {**more, "examples": pictures})
    print(*table(found), sep="\n")
    print(f"written: {file.path}")
    return written
