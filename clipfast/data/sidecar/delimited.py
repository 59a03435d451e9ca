"""CSV files of captions, read by pyarrow, and what it would take in silence refused."""

from __future__ import annotations

import csv
import re
from typing import Any

import numpy as np

from clipfast.data.sidecar.arrow import arrow
from clipfast.data.tabletext import encoding_of
from clipfast.storage import storage_of

_SEPARATORS = ",\t;|"
_HEAD = 1 << 20


def read_csv(path: str, wanted: list[str], shard: str) -> Any:
    """The wanted columns of a CSV file, all of them texts.

    Cells are separated by a comma, tab, semicolon or ``|``: by what gives the first line the wanted
    names. Quotes are ``"``, doubled inside of quoted cells, which may hold line ends.

    Args:
        path: of the file.
        wanted: names of columns.
        shard: name of one that may be there; "": none.

    Raises:
        ValueError: it is no UTF-8, lacks a column, has a row of another number of cells, or a quote
            that swallows rows.
        OSError: it cannot be read.
    """
    pa = arrow()
    separator, names = _header(path, wanted)
    columns = [*wanted, shard] if shard in names else wanted
    read = pa.csv.ReadOptions(block_size=8 << 20)
    parse = pa.csv.ParseOptions(delimiter=separator, newlines_in_values=True)
    convert = pa.csv.ConvertOptions(
        column_types=dict.fromkeys(columns, pa.large_string()),
        include_columns=columns,
        null_values=[],
        strings_can_be_null=False,
    )
    storage = storage_of(path)
    with storage.open(path) as reader, reader.stream() as stream:
        try:
            table = pa.csv.read_csv(stream, read, parse, convert)
        except pa.ArrowInvalid as error:
            raise ValueError(
                f"table of captions {path}: {str(error).partition(chr(10))[0]}. It must be UTF-8 "
                f"and have {len(names)} cells in each row; cells that hold a quote, a separator or "
                "a line end stand in quotes"
            ) from None
    _refuse_swallowed(path, table, wanted, separator, names.index(wanted[0]))
    return table


def _header(path: str, wanted: list[str]) -> tuple[str, list[str]]:
    """The separator, and the names of the columns."""
    head = storage_of(path).read_at(path, 0, _HEAD)
    encoding = encoding_of(head)
    if not encoding.startswith("utf-8"):
        raise ValueError(f"table of captions {path} is {encoding.upper()}: save it as UTF-8")
    text = head.decode("utf-8-sig", "replace")
    lines = text.splitlines()
    if not lines:
        raise ValueError(f"table of captions {path} is empty")
    found: dict[str, list[str]] = {
        separator: next(csv.reader([lines[0]], delimiter=separator), [])
        for separator in _SEPARATORS
    }
    for separator, names in found.items():
        if set(wanted) <= set(names):
            if twice := [name for name in wanted if names.count(name) > 1]:
                raise ValueError(f"table of captions {path} has several columns {twice[0]!r}")
            return separator, names
    most = max(found.values(), key=len)
    missing = next(name for name in wanted if name not in most)
    raise ValueError(
        f"table of captions {path} has no column {missing!r}; its first line has "
        f"{', '.join(map(repr, most))}"
    )


def _refuse_swallowed(path: str, table: Any, wanted: list[str], separator: str, at: int) -> None:
    """A quote that nobody closed takes the rows behind it for lines of its cell."""
    compute = arrow().compute
    for name in wanted:
        column = table[name]
        several = compute.match_substring_regex(column, "[\r\n]")
        places = np.flatnonzero(several.to_numpy())
        if not len(places):
            continue
        keys = table[wanted[0]].take(places).to_pylist()
        for place, key, cell in zip(
            places.tolist(), keys, column.take(places).to_pylist(), strict=True
        ):
            shape = _shape(key)
            for line in re.split("\r\n|\r|\n", cell)[1:]:
                cells = line.split(separator)
                if at < len(cells) - (at == 0) and _shape(cells[at].strip('" \t')) == shape:
                    raise ValueError(
                        f"table of captions {path}, row {place + 1:,} of key {key!r}: its cell "
                        f"{name!r} holds the line {line[:60]!r}, which begins like a row. A quote "
                        "before it is not closed: double quotes inside of quoted cells"
                    )


def _shape(text: str) -> str:
    """Equal for keys that are counted alike."""
    return re.sub(r"\d+", "0", text)
