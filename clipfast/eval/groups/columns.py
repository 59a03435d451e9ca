"""Groups of images: the values of a column, or of two crossed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clipfast.names import did_you_mean

Value = str | int | float | None
_MOST_GROUPS = 200
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Column:
    """One way to divide images.

    Attributes:
        name: of the column; "gender,age" of two that are crossed.
        values: G groups, each with one value per column; None where a cell is empty.
        group_of: ``[N]`` int64, the group of each image.
    """

    name: str
    values: tuple[tuple[Value, ...], ...]
    group_of: np.ndarray

    def label(self, group: int) -> str | int | float:
        """The value of a group, for a person and for JSON; texts where columns are crossed.

        Of an empty cell it is "(empty)".

        Args:
            group: its number.
        """
        values = ["(empty)" if value is None else value for value in self.values[group]]
        return values[0] if len(values) == 1 else ", ".join(map(str, values))


def columns_of(
    attributes: Mapping[str, np.ndarray], by: Sequence[str] | None, where: str
) -> list[Column]:
    """Divide images by their attributes.

    Args:
        attributes: columns ``[N]``.
        by: names of columns; "a,b" crosses two. None: each that has few values.
        where: the columns are, for messages.

    Raises:
        ValueError: there is no such column, or it has too many values.
    """
    if not attributes:
        raise ValueError(
            f"{where} has no columns that divide its images: give a table (.csv, .tsv, .jsonl, "
            ".parquet) with further columns beside path and label"
        )
    if by is not None:
        twice = next((name for name in by if by.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"--by names {twice!r} twice")
        return [_column(attributes, name, where) for name in by]
    few = [name for name, cells in attributes.items() if len(np.unique(cells)) <= _MOST_GROUPS]
    passed = [name for name in attributes if name not in few]
    if passed:
        _log.warning("%s: columns with many values are passed over: %s", where, ", ".join(passed))
    if not few:
        raise ValueError(
            f"{where}: each column has more than {_MOST_GROUPS} values ({', '.join(passed)}): "
            "write groups, such as ranges of numbers, into one"
        )
    return [_column(attributes, name, where) for name in few]


def _column(attributes: Mapping[str, np.ndarray], name: str, where: str) -> Column:
    # A column whose name has a comma is meant before two that are crossed.
    names = [name] if name in attributes else [part.strip().lower() for part in name.split(",")]
    for part in names:
        if part not in attributes:
            raise ValueError(
                f"{where} has no column {part!r}.{did_you_mean(part, attributes)} Its columns are "
                f"{', '.join(attributes)}"
            )
    if len(names) > 2:
        raise ValueError(f"--by {name!r} crosses {len(names)} columns: two are crossed at most")
    rows = list(zip(*(map(_value, attributes[part].tolist()) for part in names), strict=True))
    values = sorted(set(rows), key=lambda row: [_order(value) for value in row])
    if len(values) > _MOST_GROUPS:
        raise ValueError(
            f"{where}: {name!r} has {len(values):,} values, and {_MOST_GROUPS} at most can be "
            "compared: write groups, such as ranges of numbers, into a column"
        )
    number = {row: i for i, row in enumerate(values)}
    group_of = np.array([number[row] for row in rows], np.int64)
    return Column(",".join(names), tuple(values), group_of)


def _value(cell: Any) -> Value:
    is_nothing = cell == "" or cell != cell  # NaN is where a number is missing
    return None if is_nothing else cell


def _order(value: Value) -> tuple[bool, bool, float, str]:
    """Numbers by size, then texts, then nothing."""
    is_text = isinstance(value, str)
    number = 0.0 if value is None or isinstance(value, str) else float(value)
    return value is None, is_text, number, value if isinstance(value, str) else ""
