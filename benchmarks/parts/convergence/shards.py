"""The sample's pairs as shards that both programs read.

The embedded shard is sorted by category, and OpenCLIP's loader shuffles within a buffer that begins
to give samples before all are read: it relies on shards whose samples come in random order, as
published data sets have them. So the pairs are dealt out in one random order to small shards.
"""

from __future__ import annotations

import io
import random
import tarfile
from pathlib import Path

from benchmarks.parts.convergence.settings import PAIRS
from clipfast.data import ShardReader
from clipfast.data.order import EpochOrder
from clipfast.data.shards import counts, expand

COUNT = 16
_ORDER = 0  # seed


def write_shards(source: str, folder: Path) -> Path:
    """Deal out the pairs of some shards at random.

    Args:
        source: Of ``--data.train``.
        folder: Where the shards go, ``00.tar`` and on.

    Returns:
        The folder.

    Raises:
        ValueError: There are other than :data:`settings.PAIRS` pairs.
    """
    found = expand(source)
    places = EpochOrder(counts(found), shuffle=False)
    if len(places) != PAIRS:
        raise ValueError(f"{source}: expected {PAIRS} pairs, there are {len(places)}")
    refs = places.locate(0, 0, PAIRS)
    order = list(range(PAIRS))
    random.Random(_ORDER).shuffle(order)
    reader = ShardReader(found)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(COUNT):
        with tarfile.open(folder / f"{number:02d}.tar", "w") as shard:
            for i in order[number::COUNT]:
                place = int(refs.shard[i]), int(refs.row[i])
                _add(shard, f"{i:06d}.jpg", bytes(reader.image(*place)))
                _add(shard, f"{i:06d}.txt", reader.caption(*place).encode())
    reader.close()
    return folder


def _add(shard: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    shard.addfile(entry, io.BytesIO(content))
