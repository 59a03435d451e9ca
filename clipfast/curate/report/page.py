"""The page, in the form of the evaluations' report."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from clipfast.curate.report.numbers import Numbers
from clipfast.eval.report.charts.axes import Axes
from clipfast.eval.report.document import document
from clipfast.eval.report.markup import Markup, join, tag
from clipfast.eval.report.tables import Cell, key, number, percent, table

# Rows of a table, and points of a line.
_MOST_QUERIES = 200
_MOST_SHARDS = 1000
_POINTS = 200


def page(numbers: Numbers, selection: str, made: str) -> Markup:
    """All of the page.

    Args:
        numbers: what it shows.
        selection: name of the selection.
        made: how that was made, as it says itself.
    """
    pairs, kept = (sum(getattr(s, name) for s in numbers.shards) for name in ("pairs", "kept"))
    head = join(
        tag(
            "p",
            f"{selection} keeps {kept:,} of {pairs:,} pairs ({kept / max(1, pairs):.1%}) of "
            f"{len(numbers.shards):,} shards.",
        ),
        tag("p", "Made by: ", tag("code", made)) if made else None,
    )
    sections = [("ranks", "Head and tail", _ranks(numbers))]
    if (numbers.before > 0).any():
        sections.append(("largest", "Largest queries", _largest(numbers)))
    sections += [
        ("sources", "Sources", _sources(numbers)),
        ("shards", "Shards", _shards(numbers)),
    ]
    return document("Curation report", head, sections)


def _ranks(numbers: Numbers) -> Markup:
    """Pairs per query, from the largest query to the smallest, on two logarithmic axes."""
    queries = int((numbers.before > 0).sum())
    if queries < 2:
        return tag("p", f"{queries} queries stand in captions: too few to draw.")
    most = int(numbers.before.max())
    axes = Axes(
        "Pairs per query before and after, from the largest query to the smallest",
        "rank of the query",
        "pairs",
        _decades(queries),
        _decades(most),
        math.log10,
        math.log10,
    )
    for place, counts in enumerate((numbers.before, numbers.after)):
        falling = np.sort(counts[counts > 0])[::-1]
        if len(falling) > 1:
            ranks = np.unique(np.geomspace(1, len(falling), _POINTS).round().astype(int))
            axes.line([(int(rank), int(falling[rank - 1])) for rank in ranks], f"s{place}")
    silent = len(numbers.before) - queries
    return join(
        tag("p", key("before", 0), " ", key("after", 1), class_="keys"),
        axes.draw(),
        tag("p", f"{queries:,} queries stand in captions, {silent:,} in none."),
    )


def _decades(most: int) -> list[tuple[float, str]]:
    """1, 10, 100, 1k, ... up to the first that is not below `most`."""
    ends = max(1, math.ceil(math.log10(most)))
    return [(10.0**p, f"{10 ** (p % 3)}{' kMGT'[p // 3].strip()}") for p in range(ends + 1)]


def _largest(numbers: Numbers) -> Markup:
    order = np.lexsort((np.arange(len(numbers.before)), -numbers.before))
    order = order[: min(_MOST_QUERIES, int((numbers.before > 0).sum()))]
    rows: list[list[Cell | str]] = [
        [
            numbers.texts[query],
            numbers.sources[query],
            number(int(numbers.before[query])),
            number(int(numbers.after[query])),
            percent(int(numbers.after[query]) / int(numbers.before[query])),
        ]
        for query in order.tolist()
    ]
    caption = f"The {len(rows):,} queries that most pairs hold"
    return table(caption, ["query", "source", "pairs before", "after", "kept"], rows)


def _sources(numbers: Numbers) -> Markup:
    sources = np.array(numbers.sources)

    def rows() -> Iterator[list[Cell | str]]:
        for source in dict.fromkeys(numbers.sources):
            here = sources == source
            before, after = int(numbers.before[here].sum()), int(numbers.after[here].sum())
            yield [
                source,
                number(int(here.sum())),
                number(int((numbers.before[here] > 0).sum())),
                number(before),
                number(after),
                percent(after / before if before else None),
            ]

    head = ["source", "queries", "in captions", "matches before", "after", "kept"]
    return table("Where queries come from", head, rows())


def _shards(numbers: Numbers) -> Markup:
    shown = numbers.shards[:_MOST_SHARDS]
    rows: list[list[Cell | str]] = [
        [
            shard.name,
            number(shard.pairs),
            number(shard.matched),
            number(shard.kept),
            percent(shard.kept / shard.pairs if shard.pairs else None),
        ]
        for shard in shown
    ]
    caption = f"The first {len(shown):,} of {len(numbers.shards):,} shards"
    return table(caption, ["shard", "pairs", "with a query", "kept", "share"], rows)
