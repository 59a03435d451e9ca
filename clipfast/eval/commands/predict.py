"""``predict``: probabilities of class names for single images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from clipfast.eval.commands.options import add_model_options, computing, loaded_model
from clipfast.eval.sets.prompts import read_classnames, read_templates
from clipfast.eval.zeroshot.classifier import ONE_PROMPT
from clipfast.eval.zeroshot.predictor import ZeroShot


def add(subparsers: Any) -> None:
    """Add the subcommand.

    Args:
        subparsers: of the command line.
    """
    text = "which of some names fits an image, with probabilities"
    parser = subparsers.add_parser("predict", help=text, description=text)
    add_model_options(parser)
    parser.add_argument(
        "--names",
        required=True,
        help="class names, separated by commas; or a .txt file with one per line",
    )
    parser.add_argument("--templates", type=Path, help="file with prompts, {c} in the name's place")
    parser.add_argument("--top", type=int, default=5, help="names that are printed per image")
    parser.add_argument("images", nargs="+", metavar="IMAGE")


def run(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Print the likeliest names of each image.

    Args:
        options: as parsed.

    Returns:
        By image, the probability of every name.

    Raises:
        ValueError: an image or the weights cannot be read, or names or prompts are unfit.
    """
    given = options.names
    names = _names(given) if isinstance(given, str) else tuple(given)
    templates = read_templates(options.templates) if options.templates else ONE_PROMPT
    device, dtype = computing(options)
    classify = ZeroShot(
        loaded_model(options),
        names,
        templates,
        batch_size=options.batch_size,
        device=device,
        dtype=dtype,
    )
    rows = classify.predict(options.images)
    found = {}
    for path, row in zip(options.images, rows, strict=True):
        found[str(path)] = dict(zip(names, row.tolist(), strict=True))
        print(path)
        for place in row.argsort(descending=True, stable=True)[: options.top].tolist():
            print(f"  {row[place]:6.1%}  {names[place]}")
    return found


def _names(given: str) -> tuple[str, ...]:
    if given.endswith(".txt"):
        return read_classnames(given)
    return tuple(name.strip() for name in given.split(","))
