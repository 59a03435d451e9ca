"""Vectors of the pictures of shards: a pure step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

import numpy as np

from clipfast.curate.engine.parts import arrow
from clipfast.curate.near.chosen import Chosen, one_thread
from clipfast.curate.near.detectors import Detector
from clipfast.curate.select.combine import kept_rows
from clipfast.curate.select.within import EVERYTHING, Within
from clipfast.curate.shards import Shard, captions, images
from clipfast.data.rgb import open_rgb

# Pictures of a batch. It decides how sums are taken, so it is fixed.
_BATCH = 64


@dataclass(frozen=True)
class Embeddings:
    """A vector of each sample of a shard.

    Attributes:
        detector: that makes them.
        mirrored: whether the mirrored picture gets one too.
        within: samples that are looked at.
        threads: that decode, in each worker.
    """

    detector: Chosen
    mirrored: bool = False
    within: Within = EVERYTHING
    threads: int = 1
    name: ClassVar[str] = "embeddings"

    def options(self) -> dict[str, Any]:
        """See ``Step``."""
        own = {"version": 1, "mirrored": self.mirrored, "within": self.within.digest}
        return {**own, **self.detector.options()}

    def table(self, item: Shard) -> Any:
        """Columns of ``vector_table``, and letters: how long the longest caption is."""
        kept = kept_rows(self.within.selection(), item.path, item.samples, item.mark)
        wanted = (data if is_in else None for data, is_in in zip(images(item), kept, strict=True))
        letters = [max(map(len, texts), default=0) for texts in captions(item)]
        table = vector_table(self.detector.open(item.part), wanted, self.mirrored, self.threads)
        return table.append_column("letters", arrow().array(letters, arrow().int64()))


def vector_table(
    detector: Detector, encoded: Iterable[bytes | None], mirrored: bool, threads: int
) -> Any:
    """Vectors of pictures, as a table.

    Args:
        detector: that makes them.
        encoded: files of pictures; None: one that is not looked at.
        mirrored: whether the mirrored picture gets one too.
        threads: that decode.

    Returns:
        A ``pyarrow.Table`` with the columns vector (D float16, as bytes), mirrored (the same, where
        asked for) and pixels (of the picture, int64). A picture that does not decode, or is not
        looked at, has nulls.
    """
    rows: list[list[bytes | None]] = []
    flipped: list[list[bytes | None]] = []
    pixels: list[int | None] = []
    with one_thread(), ThreadPoolExecutor(threads) as pool:
        blank = detector.prepare(np.zeros((8, 8, 3), np.uint8))
        width = 2 * detector.vectors(blank[None]).shape[1]
        for batch in _batches(encoded):
            read = list(pool.map(lambda data: _read(detector, data), batch))
            found = [square for square, _ in read if square is not None]
            pixels += [size for _, size in read]
            missing = [square is None for square, _ in read]
            rows.append(_bytes(detector, found, missing))
            if mirrored:
                flipped.append(_bytes(detector, [square[:, ::-1] for square in found], missing))
    pa = arrow()

    def column(blocks: list[list[bytes | None]]) -> Any:
        return pa.array([row for block in blocks for row in block], pa.binary(width))

    columns = {"vector": column(rows), "pixels": pa.array(pixels, pa.int64())}
    if mirrored:
        columns["mirrored"] = column(flipped)
    return pa.table(columns)


def matrix(column: Any) -> np.ndarray:
    """``[N, D]`` float16 of a column of vectors that has no null.

    Args:
        column: of ``vector_table``.
    """
    array = column.combine_chunks()
    width = array.type.byte_width
    if not len(array):
        return np.empty((0, width // 2), "<f2")
    data = np.frombuffer(array.buffers()[1], np.uint8)
    start = array.offset * width
    return data[start : start + len(array) * width].view("<f2").reshape(len(array), width // 2)


def _batches(encoded: Iterable[bytes | None]) -> Iterator[list[bytes | None]]:
    waiting = iter(encoded)
    while batch := list(islice(waiting, _BATCH)):
        yield batch


def _read(detector: Detector, data: bytes | None) -> tuple[np.ndarray | None, int | None]:
    """The small square and the size of a picture; nothing where it does not decode."""
    if data is None:
        return None, None
    try:
        picture = np.asarray(open_rgb(data))
    except Exception:  # of many kinds; the indexer says which
        return None, None
    return detector.prepare(picture), picture.shape[0] * picture.shape[1]


def _bytes(detector: Detector, found: list[np.ndarray], missing: list[bool]) -> list[bytes | None]:
    if not found:
        return [None] * len(missing)
    half = detector.vectors(np.stack(found)).astype("<f2")
    if not np.isfinite(half).all():
        raise ValueError(f"detector {detector.name} gave a vector with a part that is no number")
    rows = iter(half)
    return [None if absent else next(rows).tobytes() for absent in missing]
