"""Evaluation sets, and the vectors of their images: a pure step over parts of sets."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar

from clipfast.curate.near.chosen import Chosen
from clipfast.curate.near.embeddings import vector_table
from clipfast.eval.sets import LabelledSet, open_set

_PER_PART = 2048
_THREADS = 4
_open = functools.lru_cache(2)(open_set)


@dataclass(frozen=True)
class EvalSet:
    """A set as ``python -m clipfast.eval zeroshot --data`` names it.

    Attributes:
        source: as it was asked for.
        split: of it.
        name: of the set.
        images: N.
        mark: digest of the files of its images.
    """

    source: str
    split: str
    name: str
    images: int
    mark: str

    def open(self) -> LabelledSet:
        """The set itself; the same one when this process asks again."""
        return _open(self.source, split=self.split)


def eval_sets(sources: Sequence[str], split: str) -> list[EvalSet]:
    """Open sets, and read all of their images once.

    Args:
        sources: as they were asked for.
        split: of them.

    Raises:
        ValueError: a set cannot be read, or two have one name.
    """
    found: dict[str, EvalSet] = {}
    for source in sources:
        images = _open(source, split=split)
        if images.name in found:
            raise ValueError(
                f"{found[images.name].source} and {source} are both called {images.name}: give "
                "one of them, or rename a folder"
            )
        digest = hashlib.blake2b(digest_size=8)
        with ThreadPoolExecutor(_THREADS) as pool:
            for data in pool.map(functools.partial(_file, images), range(len(images))):
                digest.update(hashlib.blake2b(data or b"", digest_size=16).digest())
        found[images.name] = EvalSet(source, split, images.name, len(images), digest.hexdigest())
    return list(found.values())


@dataclass(frozen=True)
class EvalPart:
    """Some images of a set, one after the other.

    Attributes:
        of: the set.
        start: place of the first one.
        stop: the place behind the last.
    """

    of: EvalSet
    start: int
    stop: int

    @property
    def part(self) -> str:
        """See ``clipfast.curate.engine.Item``."""
        return f"{self.of.mark}-{self.start:09d}-{self.stop:09d}"


def parts(images: EvalSet) -> list[EvalPart]:
    """All images of a set.

    Args:
        images: the set.
    """
    return [
        EvalPart(images, start, min(start + _PER_PART, images.images))
        for start in range(0, images.images, _PER_PART)
    ]


@dataclass(frozen=True)
class EvalEmbeddings:
    """A vector of each image.

    Attributes:
        detector: that makes them.
        mirrored: whether mirrored images get one too.
        threads: that decode.
    """

    detector: Chosen
    mirrored: bool
    threads: int = 1
    name: ClassVar[str] = "images"

    def options(self) -> dict[str, Any]:
        """See ``Step``."""
        return {"version": 1, "mirrored": self.mirrored, **self.detector.options()}

    def table(self, item: EvalPart) -> Any:
        """See ``clipfast.curate.near.embeddings.vector_table``."""
        images = item.of.open()
        encoded = (_file(images, place) for place in range(item.start, item.stop))
        detector = self.detector.open(item.part)
        return vector_table(detector, encoded, self.mirrored, self.threads)


def _file(images: LabelledSet, place: int) -> bytes | None:
    """The file of an image; None where the set says that it cannot be read."""
    try:
        return images.encoded(place)
    except ValueError:
        return None
