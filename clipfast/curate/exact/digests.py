"""What samples are compared by: a pure step over shards."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from clipfast.curate.engine.parts import arrow
from clipfast.curate.shards import Shard, captions, images
from clipfast.data.rgb import open_rgb
from clipfast.tokenizer.cleaning import clean

# Two of 400 million pairs that differ have one digest of 128 bits with a probability below 1e-20.
_BYTES = 16


@dataclass(frozen=True)
class Digests:
    """A digest of each sample of a shard.

    Attributes:
        by: of ``KINDS``.
    """

    by: str
    name: ClassVar[str] = "digests"

    def options(self) -> dict[str, Any]:
        """See ``Step``."""
        return {"version": 1, "by": self.by}

    def table(self, item: Shard) -> Any:
        """Columns high and low, uint64, the halves of the digest in the order of the rows; both are
        null where the image does not decode."""
        pa = arrow()
        found = list(KINDS[self.by](item))
        whole = np.frombuffer(b"".join(each or bytes(_BYTES) for each in found), "<u8")
        missing = np.array([each is None for each in found], bool)
        high, low = whole.reshape(-1, 2).T
        return pa.table({"high": pa.array(high, mask=missing), "low": pa.array(low, mask=missing)})


def _bytes(shard: Shard) -> Iterator[bytes | None]:
    return (_digest(image) for image in images(shard))


def _pixels(shard: Shard) -> Iterator[bytes | None]:
    return (_of_pixels(image) for image in images(shard))


def _pairs(shard: Shard) -> Iterator[bytes | None]:
    for image, texts in zip(_pixels(shard), captions(shard), strict=True):
        words = "\n".join(" ".join(clean(text).lower().split()) for text in texts)
        yield None if image is None else _digest(image + words.encode())


# What makes two samples the same.
KINDS = {"pair": _pairs, "pixels": _pixels, "bytes": _bytes}


def _of_pixels(encoded: bytes) -> bytes | None:
    """Of the picture as it is shown; None where it does not decode."""
    try:
        image = open_rgb(encoded)
    except Exception:  # of many kinds; the indexer says which
        return None
    return _digest(b"%d %d\n" % image.size + image.tobytes())


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_BYTES).digest()
