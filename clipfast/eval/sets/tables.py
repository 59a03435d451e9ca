"""Tables as columns: CSV and TSV, JSON lines, Parquet."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from clipfast.data.columns import plain_names
from clipfast.data.tablerows import Lines, Rows
from clipfast.data.tabletext import is_text, open_lines

JSON_LINES = (".jsonl", ".ndjson")
PARQUET = (".parquet",)
DELIMITED = (".csv", ".tsv", ".txt", ".token")
_SEPARATORS = (",", "\t", ";", "|")


@dataclass(frozen=True, eq=False)
class Table:
    """Rows of a table, column by column.

    Attributes:
        path: of its file.
        columns: by their names, lower case, in order; cells of one length. A cell is a text, or
            what JSON and Parquet hold; None where there is none.
        lines: of the rows in the file, from 1, for messages.
    """

    path: Path
    columns: dict[str, list[Any]]
    lines: Sequence[int]

    def __len__(self) -> int:
        return len(self.lines)

    def where(self, row: int) -> str:
        """A row, for a message."""
        return f"{str(self.path)!r}, line {self.lines[row]}"

    def column(self, kind: str, usual: Sequence[str]) -> str:
        """The name of the first column that is called as one of `usual`.

        Raises:
            ValueError: there is none.
        """
        name = next((name for name in usual if name in self.columns), None)
        if name is None:
            raise ValueError(
                f"{str(self.path)!r} has no column for the {kind}: call one {', '.join(usual)}; "
                f"its columns are {', '.join(self.columns) or 'none'}"
            )
        return name

    def of_split(self, split: str) -> "Table":
        """The rows of a split, where the table has a column of that name; else all.

        Raises:
            ValueError: it has not that split.
        """
        if "split" not in self.columns:
            return self
        cells = self.columns["split"]
        rows = [i for i, cell in enumerate(cells) if cell == split]
        if not rows:
            there = ", ".join(sorted({str(cell) for cell in cells})) or "none"
            raise ValueError(
                f"{str(self.path)!r} has no row of split {split!r}; its splits are {there}"
            )
        columns = {name: [each[i] for i in rows] for name, each in self.columns.items()}
        return Table(self.path, columns, [self.lines[i] for i in rows])


def is_table(path: Path) -> bool:
    """Whether a file's name says that it is a table."""
    return path.suffix.lower() in (*DELIMITED, *JSON_LINES, *PARQUET)


def read_table(path: Path) -> Table:
    """Read a table.

    Args:
        path: of a ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet``. Its first row holds names.

    Raises:
        ValueError: it cannot be read, or a row does not fit.
    """
    try:
        if path.suffix.lower() in PARQUET:
            return _parquet(path)
        if path.suffix.lower() in JSON_LINES:
            return _json_lines(path)
        return _delimited(path)
    except OSError as error:
        raise ValueError(
            f"cannot read {str(path)!r}: {error.strerror or error}; look at its path"
        ) from None


def _delimited(path: Path) -> Table:
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    with open_lines(str(path)) as text:
        lines = Lines(text)
        head = "".join(islice(lines, 1))
        lines.keep(0)
        # The one that cuts the names into most.
        separator = max((usual, *_SEPARATORS), key=head.count)
        # Tables cut by bars, such as Flickr30k's, use quotes as letters.
        rows = Rows(lines, separator, "" if separator == "|" else '"')
        header = rows.read()
        names = plain_names(header.cells) if header is not None else []
        _check_names(path, names)
        columns: dict[str, list[Any]] = {name: [] for name in names}
        numbers = []
        while row := rows.read():
            reason = row.reason
            if not reason and len(row.cells) != len(names):
                reason = (
                    f"row has {len(row.cells)} cells, and the first row {len(names)}: put a cell "
                    f"that holds {separator!r} in quotes"
                )
            if not reason and not all(map(is_text, row.cells)):
                reason = "row is not UTF-8: save the table as UTF-8"
            if reason:
                raise ValueError(f"{str(path)!r}, line {row.line}: {reason}")
            for name, cell in zip(names, row.cells, strict=True):
                columns[name].append(cell.strip())
            numbers.append(row.line)
    return Table(path, columns, numbers)


def _json_lines(path: Path) -> Table:
    rows: list[dict[str, Any]] = []
    numbers = []
    with open_lines(str(path)) as text:
        for number, line in enumerate(text, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(
                    f"{str(path)!r}, line {number} is not JSON: {error}; write one object a line"
                ) from None
            if not isinstance(row, dict):
                raise ValueError(
                    f"{str(path)!r}, line {number} is no JSON object; write one a line"
                )
            rows.append({key.strip().lower(): value for key, value in row.items()})
            numbers.append(number)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return Table(path, {name: [row.get(name) for row in rows] for name in names}, numbers)


def _parquet(path: Path) -> Table:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ValueError(
            f"{str(path)!r} needs pyarrow to be read: pip install pyarrow, or write it as CSV "
            f"({error})"
        ) from None
    if not path.is_file():
        raise ValueError(f"cannot read {str(path)!r}: there is no such file; look at its path")
    try:
        table = parquet.read_table(path)
    except ArrowException as error:
        raise ValueError(f"{str(path)!r} is no Parquet file: {error}; write it again") from None
    names = plain_names(table.column_names)
    _check_names(path, names)
    columns = {name: cells.to_pylist() for name, cells in zip(names, table.columns, strict=True)}
    return Table(path, columns, range(1, table.num_rows + 1))


def _check_names(path: Path, names: Sequence[str]) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{str(path)!r} has several columns {twice!r}; rename all but one")
