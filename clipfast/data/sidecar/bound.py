"""Tables of captions as the shards of a run have them, source by source."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from clipfast.arguments import WrongKindError, shown
from clipfast.data.fields import Fields, without_captions
from clipfast.data.sidecar.join import join
from clipfast.data.sidecar.joined import Joined
from clipfast.data.sidecar.options import Sidecar
from clipfast.data.table import Identity, Table
from clipfast.data.together import ALONE, Together
from clipfast.storage.paths import scheme_of


@dataclass(frozen=True, eq=False)
class _Place:
    """Where the captions of a shard are.

    Attributes:
        joined: those of its source.
        number: of the shard in them.
        own: a sample that has none there takes that of the tar.
    """

    joined: Joined
    number: int
    own: bool


class Captions:
    """Captions of the samples of some shards; those of other shards stand in the tars.

    Args:
        places: of each shard; None where its captions stand in the tar.
        sidecars: by which they were joined, with what came of each.
    """

    def __init__(
        self, places: Sequence[_Place | None], sidecars: Sequence[tuple[Sidecar, Joined]]
    ) -> None:
        self._places = list(places)
        self._sidecars = list(sidecars)

    @property
    def digest(self) -> str:
        """16 hexadecimal digits of all captions and of whose they are."""
        found = [
            "" if place is None else f"{place.joined.digest} {place.number}"
            for place in self._places
        ]
        return hashlib.sha256("\n".join(found).encode()).hexdigest()[:16]

    def digest_of(self, shard: int) -> str:
        """Of the captions of one shard; "" where they stand in the tar."""
        place = self._places[shard]
        return "" if place is None else place.joined.shards[place.number].captions

    def here(self, shard: int) -> bool:
        """Whether the captions of a shard are here."""
        return self._places[shard] is not None

    def fields(self, shard: int, fields: Fields) -> Fields:
        """Which members of a shard are image and caption."""
        return without_captions(fields) if self.here(shard) else fields

    def usable(self, shard: int, mark: str = "") -> np.ndarray:
        """``[N]`` bool: which samples of a shard have a caption.

        Args:
            shard: whose captions are here.
            mark: of its table; "" compares nothing.

        Raises:
            ValueError: the table is another one than at the start.
        """
        place = self._places[shard]
        assert place is not None
        known = place.joined.shards[place.number]
        if mark and mark != known.mark:
            raise ValueError(
                f"shard {known.name} or its index has changed since its captions were looked up. "
                "Put the old one back, or start again"
            )
        said = place.joined.said(place.number)
        return said | place.joined.members(place.number) if place.own else said

    def only_usable(self, shard: int, table: Table) -> Table:
        """The table of those samples of a shard that have a caption.

        Raises:
            ValueError: see ``usable``.
        """
        if not self.here(shard):
            return table
        usable = self.usable(shard, table.mark)
        return table.only(np.flatnonzero(usable if table.rows is None else usable[table.rows]))

    def in_tar(self, shard: int, table: Table) -> np.ndarray:
        """``[N]`` bool: whether the caption of each sample of a table stands in the tar.

        Args:
            shard: whose table it is.
            table: of samples that are usable.
        """
        place = self._places[shard]
        if place is None:
            return np.ones(len(table), bool)
        said = place.joined.said(place.number)
        return ~(said if table.rows is None else said[table.rows])

    def texts(self, shard: int, row: int) -> list[str]:
        """The captions of a sample; none where they stand in the tar.

        Args:
            shard: its shard.
            row: of all samples of the shard's index.
        """
        place = self._places[shard]
        return [] if place is None else place.joined.texts(place.number, row)

    def __str__(self) -> str:
        """What there is, for a person."""
        return "; ".join(_said(sidecar, joined) for sidecar, joined in self._sidecars)


def sidecars_of(
    sidecars: Sidecar | Mapping[str, Sidecar] | None, names: Sequence[str], source: np.ndarray
) -> list[Sidecar | None]:
    """Where the captions of each shard stand; None for those of the tar.

    Args:
        sidecars: one of all shards, or by the names of sources; "" is of those without one.
        names: of the sources; none where shards have no names.
        source: ``[S]`` int64, position in `names` of each shard.

    Raises:
        TypeError: these are no sidecars; a ``ValueError`` too.
        ValueError: a name is no source.
    """
    if isinstance(sidecars, Sidecar):
        sidecars = {"": sidecars}
    if sidecars is None:
        sidecars = {}
    if not isinstance(sidecars, Mapping) or not all(
        isinstance(each, Sidecar) for each in sidecars.values()
    ):
        raise WrongKindError(f"sidecars must be a Sidecar or some by name; got {shown(sidecars)}")
    if unknown := sorted(set(sidecars) - {"", *names}):
        raise ValueError(f"captions of {unknown[0]!r}: it is no source")
    return [sidecars.get(names[i] if names else "", sidecars.get("")) for i in source.tolist()]


def bind(
    sidecars: Sequence[Sidecar | None],
    shards: Sequence[str],
    known: Mapping[int, Identity],
    fields: Fields,
    folder: str = "",
    together: Together = ALONE,
) -> Captions | None:
    """Join tables of captions with the shards that they are of.

    Args:
        sidecars: of each shard, see ``sidecars_of``.
        shards: paths of tars.
        known: what they are known by, at least those whose captions stand in tables.
        fields: which members of tars are image and caption.
        folder: see ``join``.
        together: ranks of the same arguments; see ``join``. Where a table is a file of a machine,
            each rank looks at it.

    Returns:
        None where all captions stand in the tars.

    Raises:
        ValueError, OSError: see ``join``.
    """
    places: list[_Place | None] = [None] * len(shards)
    made = []
    for sidecar in dict.fromkeys(each for each in sidecars if each is not None):
        mine = [i for i, each in enumerate(sidecars) if each == sidecar]
        far = all(scheme_of(file) not in ("file", "") for file in sidecar.files)
        joined = join(
            sidecar,
            [shards[i] for i in mine],
            fields,
            folder,
            known=[known[i] for i in mine],
            together=together if far else ALONE,
        )
        for number, i in enumerate(mine):
            places[i] = _Place(joined, number, sidecar.missing == "own")
        made.append((sidecar, joined))
    return Captions(places, made) if made else None


def _said(sidecar: Sidecar, joined: Joined) -> str:
    samples = sum(shard.samples for shard in joined.shards)
    words = (
        f"{joined.captions:,} captions of {samples - joined.without:,} of {samples:,} samples in "
        f"{', '.join(sidecar.files)}"
    )
    if joined.without:
        key, shard = joined.example
        done = "left out" if sidecar.missing == "leave-out" else "take their own, if they have one"
        words += f", {joined.without:,} have none there and are {done}, such as {key!r} of {shard}"
        words = words.replace("are take", "take")
    if joined.unused:
        words += f"; {joined.unused:,} keys there are of no sample"
    return words
