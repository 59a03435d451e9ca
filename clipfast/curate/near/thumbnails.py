"""Small pictures of samples, for pages."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from PIL import Image

from clipfast.curate.shards import Shard
from clipfast.data.rgb import open_rgb
from clipfast.data.tarwalk import read_exactly
from clipfast.eval.report.markup import Markup, join, tag
from clipfast.storage import storage_of

_SIDE = 112
_QUALITY = 80
_THREADS = 8


@dataclass(frozen=True)
class Thumbnail:
    """A small picture.

    Attributes:
        name: of the sample, for people.
        size: of the whole picture, such as "640 x 480".
        jpeg: the picture.
    """

    name: str
    size: str
    jpeg: bytes

    def image(self) -> Markup:
        """As an element of a page."""
        source = f"data:image/jpeg;base64,{b64encode(self.jpeg).decode()}"
        return tag("img", src=source, alt=self.name, title=self.name, loading="lazy")


def thumbnail(name: str, encoded: bytes) -> Thumbnail:
    """A small picture of a large one.

    Args:
        name: of the sample, for people.
        encoded: its file.
    """
    image = open_rgb(encoded)
    size = f"{image.width} x {image.height}"
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return Thumbnail(name, size, buffer.getvalue())


def thumbnails(
    shards: Sequence[Shard], wanted: Iterable[tuple[int, int]]
) -> dict[tuple[int, int], Thumbnail]:
    """Small pictures of samples.

    Args:
        shards: they are in.
        wanted: place of the shard, and row.

    Raises:
        ValueError: a shard is not what it was.
        OSError: a shard cannot be read.
    """
    rows: dict[int, list[int]] = {}
    for shard, row in sorted(set(wanted)):
        rows.setdefault(shard, []).append(row)

    def read(place: int) -> dict[tuple[int, int], Thumbnail]:
        shard = shards[place]
        table, found = shard.table(), {}
        keys = table.keys()
        with storage_of(shard.path).open(shard.path) as reader:
            for row in rows[place]:
                at, size = int(table.image_offset[row]), int(table.image_size[row])
                data = read_exactly(reader, at, size, shard.path)
                found[place, row] = thumbnail(f"{shard.name} {keys[row]}", data)
        return found

    with ThreadPoolExecutor(_THREADS) as pool:
        return {place: made for found in pool.map(read, rows) for place, made in found.items()}


def pair(one: Thumbnail, other: Thumbnail, similarity: float, *words: str) -> Markup:
    """Two pictures side by side.

    Args:
        one: the first.
        other: the second.
        similarity: of the two.
        words: of what else is known of them, one line each.
    """
    lines = [
        tag("b", f"{similarity:.4f}"),
        *(tag("div", line) for line in words),
        *(tag("div", f"{each.name}, {each.size}") for each in (one, other)),
    ]
    return tag(
        "figure",
        tag("div", one.image(), other.image(), class_="two"),
        tag("figcaption", *lines),
        class_="pair",
    )


def grid(figures: Sequence[Markup]) -> Markup:
    """Pairs as a grid; a word where there is none."""
    if not figures:
        return tag("p", "None.")
    return tag("div", join(*figures), class_="pairs")
