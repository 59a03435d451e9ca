"""The page of overlap: a table, the plots of figure 17, and pairs as pictures."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence

import numpy as np

from clipfast.curate.near.thumbnails import Thumbnail, grid, pair, thumbnail, thumbnails
from clipfast.curate.overlap.figure import plots
from clipfast.curate.overlap.result import SetOverlap, tests_of
from clipfast.curate.overlap.statistics import ALPHA, significant
from clipfast.curate.shards import Shard
from clipfast.eval.report.document import document
from clipfast.eval.report.markup import Markup, join, tag
from clipfast.eval.report.tables import Cell, number, percent, span, table

_BESIDE = 20
_NEAREST = 12


def page(
    results: Sequence[SetOverlap], shards: Sequence[Shard], detector: str, pictures: int
) -> Markup:
    """All of the page.

    Args:
        results: of the sets.
        shards: of the training set.
        detector: its name.
        pictures: of the training set.
    """
    head = tag(
        "p",
        f"{len(results)} evaluation set(s) against {pictures:,} training samples of "
        f"{len(shards):,} shards, by the detector {detector}. The left picture of a pair is of the "
        "evaluation set, the right one is its nearest training picture.",
    )
    sections = [("sets", "Overlap of each set", _sets(results))]
    measured = [
        one for one in results if one.effect is not None and one.effect.difference is not None
    ]
    if any(one.effect is not None for one in results):
        sections.append(("accuracy", "What overlap adds to accuracy", _effects(results)))
    if measured:
        sections.append(("plots", "Figure 17", _plots(measured)))
    for place, one in enumerate(results):
        sections.append((f"set-{place}", f"Pairs of {one.images.name}", _pairs(one, shards)))
    return document("Overlap of evaluation sets with the training set", head, sections)


def _sets(results: Sequence[SetOverlap]) -> Markup:
    rows: list[list[Cell | str]] = [
        [
            one.images.name,
            number(len(one.place)),
            number(int(one.overlaps.sum())),
            percent(one.contamination, 2),
            number(one.threshold, "g"),
            number(one.images.images - len(one.place)),
        ]
        for one in results
    ]
    head = ["set", "images", "Overlap", "contamination", "threshold", "do not decode"]
    return table("Images that the training set holds", head, rows)


def _effects(results: Sequence[SetOverlap]) -> Markup:
    tests = tests_of(results)
    rows: list[list[Cell | str]] = []
    for one in results:
        effect = one.effect
        if effect is None:
            continue
        rows.append(
            [
                one.images.name,
                percent(effect.all.share, 2),
                percent(effect.overlap.share, 2),
                percent(effect.clean.share, 2),
                _points(effect.gain),
                span(effect.interval),
                number(effect.p_value, ".3g"),
                significant(effect.p_value, tests),
            ]
        )
    head = ["set", "All", "Overlap", "Clean", "All - Clean", "Overlap, 99.5%", "p"]
    note = (
        "p is the chance of as many right answers on Overlap, or more, where a model is as good "
        f"there as on Clean. Significant is p below {ALPHA:g}; Bonferroni is p below {ALPHA:g} / "
        f"{tests} for the {tests} set(s) that were tested."
    )
    return join(table("Accuracy", [*head, "significant"], rows), tag("p", note))


def _points(value: float | None) -> Cell:
    return number(None if value is None else 100 * value, "+.2f")


def _plots(results: Sequence[SetOverlap]) -> Markup:
    words = (
        "Accuracy on Overlap less that on Clean, with its 99.5% interval, over the share of images "
        "that overlap.",
        "What overlap adds to the accuracy on all images. A diamond is significant, a star with "
        "Bonferroni too.",
    )
    figures = []
    for said, light, dark in zip(words, plots(results), plots(results, dark=True), strict=True):
        picture = tag(
            "picture",
            tag("source", media="(prefers-color-scheme: dark)", srcset=_source(dark)),
            tag("img", src=_source(light), alt=said, class_="plot"),
        )
        figures.append(tag("figure", picture, tag("figcaption", said)))
    return tag("div", *figures, class_="beside")


def _source(png: bytes) -> str:
    return f"data:image/png;base64,{b64encode(png).decode()}"


def _pairs(one: SetOverlap, shards: Sequence[Shard]) -> Markup:
    order = np.argsort(-one.similarity, kind="stable")
    above, below = order[one.overlaps[order]], order[~one.overlaps[order]]
    kinds = [
        ("The nearest pairs", above[:_NEAREST]),
        ("Overlap, just above the threshold", above[::-1][:_BESIDE]),
        ("Clean, just below the threshold", below[:_BESIDE]),
    ]
    shown = np.concatenate([places for _, places in kinds])
    train = thumbnails(shards, [_train(one, at) for at in shown.tolist()])
    images = one.images.open()

    def figure(at: int) -> Markup:
        place = int(one.place[at])
        mine: Thumbnail = thumbnail(f"{one.images.name} {place}", images.encoded(place))
        return pair(mine, train[_train(one, at)], float(one.similarity[at]))

    parts = []
    for title, places in kinds:
        parts.append(tag("h3", f"{title} ({len(places)})"))
        parts.append(grid([figure(at) for at in places.tolist()]))
    return join(*parts)


def _train(one: SetOverlap, at: int) -> tuple[int, int]:
    return int(one.shard[at]), int(one.row[at])
