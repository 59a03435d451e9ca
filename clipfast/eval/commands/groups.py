"""``groups``: a zero-shot task by columns of a table."""

from __future__ import annotations

import argparse
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
from clipfast.eval.groups.breakdown import break_down
from clipfast.eval.groups.columns import columns_of
from clipfast.eval.groups.labelsets import check_added, read_added, shares
from clipfast.eval.groups.result import as_json, metrics_of, table
from clipfast.eval.readable import readable_features

TASK = "groups"

SHARES_WORK = True


def add(subparsers: Any) -> None:
    """Add the subcommand.

    Args:
        subparsers: of the command line.
    """
    text = "break a zero-shot task down by columns of a table"
    parser = subparsers.add_parser("groups", help=text, description=text)
    add_model_options(parser)
    add_set_options(parser)
    group = parser.add_argument_group("groups")
    group.add_argument(
        "--by",
        nargs="+",
        metavar="COLUMN",
        help="columns of the table; A,B crosses two; default: each with few values",
    )
    group.add_argument(
        "--add-classes",
        nargs="+",
        default=(),
        metavar="CATEGORY=NAME,...",
        help="classes that are added, or a .json of them: which groups are put into them",
    )
    group.add_argument(
        "--more-classes",
        nargs="+",
        default=(),
        metavar="CATEGORY=NAME,...",
        help="added on top of --add-classes, for a second table",
    )
    add_output_options(parser)
    add_cache_option(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Classify, print tables, and write the result.

    Args:
        options: as parsed.

    Returns:
        What the file of the result holds.

    Raises:
        ValueError: data or weights cannot be read or do not fit.
        OSError: the result cannot be written.
    """
    images = set_of(options)
    by = [column.name for column in columns_of(images.attributes, options.by, images.name)]
    added = read_added(options.add_classes, "--add-classes")
    more = read_added(options.more_classes, "--more-classes")
    twice = next((name for name in more if name in added), None)
    if twice is not None:
        raise ValueError(f"--more-classes: category {twice!r} is one of --add-classes")
    check_added(images.classnames, {**added, **more})
    file, loaded, existing = begin(options, images.name, TASK)
    designs = [each for each in (added, {**added, **more}) if each]
    designs = designs if more or not added else designs[:1]
    if loaded is None:
        there = [one["added"] for one in existing.get("label_sets", [])]
        wanted = [{name: list(names) for name, names in each.items()} for each in designs]
        differing = {
            "--by": list(existing.get("groups", {})) != by,
            "added classes": there != wanted,
        }
        require_same(file.path, differing)
        return existing
    encoder = encoder_of(options, loaded)
    cache = cache_of(options)
    classifier, *others = (
        cache.classifier(
            encoder,
            images.name,
            (*images.classnames, *(name for names in design.values() for name in names)),
            images.templates,
        )
        for design in ({}, *designs)
    )
    read = readable_features(encoder, images)
    kept = read.kept.numpy()
    columns = columns_of(
        {name: cells[kept] for name, cells in images.attributes.items()}, by, images.name
    )
    found = break_down(read.features, classifier, images.labels[kept], columns)
    label_sets = [
        shares(read.features, weights, len(images.classnames), design, columns)
        for weights, design in zip(others, designs, strict=True)
    ]
    metrics = metrics_of(found)
    content = {
        "split": images.split,
        "resize": options.resize,
        "unreadable": {str(place): reason for place, reason in read.unreadable.items()},
        **as_json(found, columns, label_sets),
    }
    if encoder.sharing.rank:
        return {"metrics": metrics, **content}
    written = file.write(metrics, content)
    print(f"{images.name} ({images.split}), zero-shot by groups")
    print(*table(found, columns, label_sets), sep="\n")
    if read.unreadable:
        print(f"{len(read.unreadable)} image(s) do not decode and are left out")
    print(f"written: {file.path}")
    return written
