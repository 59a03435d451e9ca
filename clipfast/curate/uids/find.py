"""The uid of each sample: a pure step over shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from clipfast.curate.engine.parts import arrow, digest
from clipfast.curate.shards import Shard, Told, members
from clipfast.curate.uids.subset import halves
from clipfast.data.fields import Fields, without_captions
from clipfast.data.scan import scan
from clipfast.data.sidecar import Sidecar
from clipfast.data.sidecar.join import join
from clipfast.data.sidecar.joined import Joined
from clipfast.data.table import read_table


@dataclass(frozen=True)
class Source:
    """A shard, and the table of its uids where they stand in one.

    Attributes:
        shard: the shard.
        told: uids of a table; None: they stand in the tar.
    """

    shard: Shard
    told: Told | None = None

    @property
    def part(self) -> str:
        """See ``clipfast.curate.engine.Item``."""
        return self.shard.part + (f"-{digest(self.told.digest)}" if self.told else "")


def sources_of(
    shards: Sequence[Shard], sidecar: Sidecar | None = None, folder: str = ""
) -> list[Source]:
    """Shards with their uids.

    Args:
        shards: in the order of their names.
        sidecar: tables in which uids stand; None: in a JSON of each sample.
        folder: where tables are joined with shards, see ``clipfast.data.sidecar.join``.

    Raises:
        ValueError, OSError: see ``clipfast.data.sidecar.join``.
    """
    if sidecar is None:
        return [Source(shard) for shard in shards]
    fields = without_captions(shards[0].fields)
    joined = join(sidecar, [shard.path for shard in shards], fields, folder)
    return [
        Source(shard, Told(joined.path, number, known.captions, own=False))
        for number, (shard, known) in enumerate(zip(shards, joined.shards, strict=True))
    ]


@dataclass(frozen=True)
class Uids:
    """The uid of each sample of a shard.

    Attributes:
        key: of the JSON, where uids stand in tars.
    """

    key: str = "uid"
    name: ClassVar[str] = "uids"

    def options(self) -> dict[str, Any]:
        """See ``Step``."""
        return {"version": 1, "key": self.key}

    def table(self, item: Source) -> Any:
        """Columns high and low, uint64, the halves of the uid in the order of the rows; both are
        null where a sample has none."""
        pa = arrow()
        texts = _in_tar(item.shard, self.key) if item.told is None else _in_table(item)
        rows = item.shard.table().image_offset.tolist()
        found = [halves(texts.get(offset, "")) for offset in rows]
        missing = np.array([each is None for each in found], bool)
        whole = np.array([each or (0, 0) for each in found], np.uint64).reshape(-1, 2)
        high, low = (np.ascontiguousarray(column) for column in whole.T)
        return pa.table({"high": pa.array(high, mask=missing), "low": pa.array(low, mask=missing)})


def _in_tar(shard: Shard, key: str) -> dict[int, str]:
    """Uids of JSON members, by the places of the images that they belong to.

    An index may know other members of a sample than these, hence the walk.
    """
    fields = Fields(captions=(f"json:{key}",))
    entries = [sample.entry for sample in scan(shard.path, fields) if sample.entry]
    offsets = np.array([entry.caption_offset for entry in entries], np.int64)
    sizes = np.array([entry.caption_size for entry in entries], np.int64)
    found = {}
    for entry, data in zip(entries, members(shard, offsets, sizes), strict=True):
        try:
            found[entry.image_offset] = fields.texts(data)[0]
        except ValueError:
            continue
    return found


def _in_table(item: Source) -> dict[int, str]:
    """Uids of a table, by the places of the images."""
    assert item.told is not None
    joined = Joined(item.told.joined)
    known = joined.shards[item.told.number]
    if known.captions != item.told.digest:
        raise ValueError(f"{joined.path} has other uids than at the start: run again")
    table = read_table(item.shard.path, without_captions(item.shard.fields))
    if (len(table), table.mark) != (known.samples, known.mark):
        raise ValueError(
            f"shard {item.shard.path} is not what it was at the start: let nothing write to it, "
            "and run again"
        )
    offsets = table.image_offset.tolist()
    texts = (joined.texts(item.told.number, row) for row in range(len(table)))
    return {at: found[0] for at, found in zip(offsets, texts, strict=True) if found}
