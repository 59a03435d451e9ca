"""Tables of images and the places where they were taken."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clipfast.eval.sets.files import ImageFiles
from clipfast.eval.sets.imageroots import check_files, find_root
from clipfast.eval.sets.labelledtable import IMAGE_NAMES
from clipfast.eval.sets.tables import Table, is_table, read_table

_LATITUDE = ("latitude", "lat")
_LONGITUDE = ("longitude", "lon", "lng", "long")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class PlacedSet:
    """N images and where they were taken.

    Attributes:
        name: of the set.
        split: of it.
        encoded: gives the i-th image, as a file.
        coordinates: ``[N, 2]`` float64, latitude and longitude in degrees.

    Raises:
        ValueError: no image, or coordinates that are none.
    """

    name: str
    split: str
    encoded: Callable[[int], bytes]
    coordinates: np.ndarray

    def __post_init__(self) -> None:
        if self.coordinates.ndim != 2 or self.coordinates.shape[1:] != (2,):
            raise ValueError(
                f"{self.name}: coordinates must be [N, 2], latitude and longitude; got "
                f"{list(self.coordinates.shape)}"
            )
        if not len(self):
            raise ValueError(f"{self.name} has no image: name another split, or look at its path")
        wrong = np.flatnonzero(~(np.abs(self.coordinates) <= (90, 180)).all(1))
        if len(wrong):
            raise ValueError(
                f"{self.name}: {len(wrong):,} coordinates are none, such as "
                f"{tuple(self.coordinates[wrong[0]].tolist())} of image {int(wrong[0])}"
            )

    def __len__(self) -> int:
        return len(self.coordinates)


def open_places(
    path: str | Path, *, split: str = "test", root: str | Path | None = None
) -> PlacedSet:
    """Read a table of images and their places.

    Args:
        path: of a ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet`` with the columns ``path``,
            ``latitude`` and ``longitude``, in degrees: north and east are positive.
        split: taken where the table has a column ``split``.
        root: folder that paths start from; default that of the table.

    Raises:
        ValueError: it cannot be read, a column is missing, a coordinate is none, or a file is not
            there.
    """
    file = Path(path).expanduser()
    if not is_table(file):
        raise ValueError(
            f"{str(path)!r} is no table (.csv, .tsv, .jsonl, .parquet) of images with latitude and "
            "longitude"
        )
    every = read_table(file)
    image = every.column("image", IMAGE_NAMES)
    columns = every.column("latitude", _LATITUDE), every.column("longitude", _LONGITUDE)
    table = every.of_split(split)
    if not len(table):
        raise ValueError(f"{str(path)!r} has no row below its first")
    coordinates = np.stack([_degrees(table, columns[0], 90), _degrees(table, columns[1], 180)], 1)
    names = [str(cell or "").strip() for cell in table.columns[image]]
    empty = next((row for row, name in enumerate(names) if not name), None)
    if empty is not None:
        raise ValueError(f"{table.where(empty)}: column {image!r} is empty; fill it")
    start = find_root(file, None if root is None else Path(root).expanduser(), names[0])
    files = [str(start / name) for name in names]
    check_files(file, files, [table.where(row) for row in range(len(table))])
    at_zero = int((coordinates == 0).all(1).sum())
    if at_zero:
        _log.warning(
            "%s: %d image(s) lie at latitude 0 and longitude 0, which often means that the place "
            "is not known: leave them out",
            path,
            at_zero,
        )
    return PlacedSet(file.stem, split, ImageFiles(files), coordinates)


def _degrees(table: Table, column: str, most: int) -> np.ndarray:
    found = np.empty(len(table))
    for row, cell in enumerate(table.columns[column]):
        try:
            found[row] = float(cell)
        except (TypeError, ValueError):
            found[row] = np.nan
    wrong = np.flatnonzero(~(np.abs(found) <= most))
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"{table.where(row)}: {column} is {table.columns[column][row]!r}; {len(wrong):,} of "
            f"{len(table):,} rows have no number of degrees from -{most} to {most} there. Correct "
            "them, or leave these rows out"
        )
    return found
