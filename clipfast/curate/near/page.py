"""The page by which a person sets a threshold: pairs as pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clipfast.curate.near.findings import (
    AtThreshold,
    bands,
    just_above,
    just_below,
    members,
)
from clipfast.curate.near.groups import Pairs
from clipfast.curate.near.thumbnails import Thumbnail, grid, pair, thumbnails
from clipfast.curate.near.vectors import Vectors
from clipfast.curate.shards import Shard
from clipfast.eval.report.charts.bars import bar
from clipfast.eval.report.document import document
from clipfast.eval.report.markup import Markup, join, tag
from clipfast.eval.report.tables import Cell, number, percent, table

_GROUPS, _MEMBERS = 4, 12


class NearPage:
    """Puts the page together: first it notes which pictures it needs, then it draws them.

    Args:
        shards: of the samples.
        vectors: of the pictures.
        pairs: all that were found, with some below the lowest threshold.
        found: at each threshold, the one of the selection first.
        detector: its name, for people.
        unread: pictures that do not decode.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        vectors: Vectors,
        pairs: Pairs,
        found: Sequence[AtThreshold],
        detector: str,
        unread: int,
    ) -> None:
        self._shards, self._pairs, self._found = shards, pairs, found
        self._detector, self._unread = detector, unread
        shard, row = vectors.column("shard"), vectors.column("row")
        self._pictures = len(row)
        lowest = min(each.threshold for each in found)
        self._bands = bands(pairs, lowest)
        self._beside = {
            each.threshold: (just_above(pairs, each.threshold), just_below(pairs, each.threshold))
            for each in found
        }
        self._members = members(found[0].groups, _GROUPS, _MEMBERS)
        shown = [part for *_, part in self._bands]
        shown += [part for both in self._beside.values() for part in both]
        places = np.unique(
            np.concatenate(
                [column for part in shown for column in (part.first, part.second)]
                + [few for _, few in self._members]
            )
        ).astype(np.int64)
        self._at = {int(place): (int(shard[place]), int(row[place])) for place in places}
        self._thumbnails = thumbnails(shards, self._at.values())

    def html(self) -> Markup:
        """All of the page."""
        head = tag(
            "p",
            f"{self._pictures:,} pictures of {len(self._shards):,} shards, compared by the "
            f"detector {self._detector}. The selection is that of the first threshold. ",
            f"{self._unread:,} more do not decode, and stay. " if self._unread else None,
        )
        sections = [
            ("thresholds", "Thresholds", self._thresholds()),
            ("bands", "From unlike to alike", self._bands_section()),
        ]
        for each in self._found:
            title = f"Around {each.threshold:g}"
            sections.append((f"at-{each.threshold:g}", title, self._around(each)))
        sections.append(("groups", "Largest groups", self._groups()))
        return document("Near duplicates", head, sections)

    def _thresholds(self) -> Markup:
        rows: list[list[Cell | str]] = [
            [
                f"{each.threshold:g}",
                number(len(each.groups.pairs)),
                number(each.groups.count),
                number(int(each.goes.sum())),
                percent(each.goes.mean() if len(each.goes) else None),
                number(max(each.groups.largest, default=None)),
                number(each.chains),
            ]
            for each in self._found
        ]
        head = ["threshold", "pairs", "groups", "samples that go", "share", "largest group"]
        made = table("What each threshold finds", [*head, "chains"], rows)
        note = (
            "Pairs connect samples to groups, and one of each group stays. Pictures with one "
            "vector count as pairs of the first of them. A group that is larger than --max-group "
            "is a chain: there a sample goes only where it is a pair of one that stays."
        )
        return join(made, tag("p", note))

    def _bands_section(self) -> Markup:
        most = max(1, *(count for _, _, count, _ in self._bands))
        rows: list[list[Cell | str]] = [
            [f"{low:.4f} to {high:.4f}", number(count), Cell(bar(count / most))]
            for low, high, count, _ in self._bands
        ]
        parts = [table("Pairs by similarity", ["similarity", "pairs", ""], rows, sortable=False)]
        for low, high, count, some in self._bands:
            if count:
                parts.append(tag("h3", f"{low:.4f} to {high:.4f}: {len(some)} of {count:,} pairs"))
                parts.append(self._grid(some))
        return join(*parts)

    def _around(self, each: AtThreshold) -> Markup:
        above, below = self._beside[each.threshold]
        return join(
            tag("h3", f"Just above: the {len(above)} pairs that are the least alike"),
            self._grid(above),
            tag("h3", f"Just below: the {len(below)} nearest pairs that are none"),
            self._grid(below),
        )

    def _groups(self) -> Markup:
        if not self._members:
            return tag("p", "There are none.")
        parts = []
        for size, few in self._members:
            images = [self._picture(int(place)).image() for place in few]
            parts.append(tag("h3", f"{size:,} pictures"))
            parts.append(tag("div", *images, class_="group"))
        return join(*parts)

    def _grid(self, pairs: Pairs) -> Markup:
        columns = zip(pairs.first, pairs.second, pairs.similarity, strict=True)
        return grid([pair(self._picture(a), self._picture(b), float(s)) for a, b, s in columns])

    def _picture(self, place: int) -> Thumbnail:
        return self._thumbnails[self._at[int(place)]]
