"""The rows of a table of captions: keys and texts as Arrow holds them, never as Python's."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from clipfast.data.blank import is_blank
from clipfast.data.sidecar.arrow import arrow, whole
from clipfast.data.sidecar.delimited import read_csv
from clipfast.data.sidecar.options import Sidecar
from clipfast.storage import storage_of
from clipfast.storage.paths import scheme_of

# Between the name of a shard and a key: in no name of a file.
SEPARATOR = "\0"


@dataclass(frozen=True, eq=False)
class Rows:
    """What some tables hold.

    Attributes:
        keys: ``[R]`` large_binary, of each row; with its shard before it where the table tells it.
        row: ``[C]`` int64, the row of each caption, rising.
        texts: ``[C]`` large_string, captions that say something.
        with_shards: whether keys have their shard before them.
    """

    keys: Any
    row: np.ndarray
    texts: Any
    with_shards: bool


def read_rows(path: str, sidecar: Sidecar) -> Rows:
    """Read one table.

    Args:
        path: of a Parquet or CSV file, by its ending.
        sidecar: which columns.

    Raises:
        ValueError: it is no such table, lacks a column, has one of another type, or an empty key;
            or pyarrow is not installed.
        OSError: it cannot be read.
    """
    pa = arrow()
    wanted = [sidecar.key, *sidecar.captions]
    try:
        if path.lower().endswith(".parquet"):
            table = _read_parquet(path, wanted, sidecar)
        else:
            table = read_csv(path, wanted, "" if sidecar.per_shard else sidecar.shard)
        keys = _keys(whole(table[sidecar.key]))
        with_shards = not sidecar.per_shard and sidecar.shard in table.column_names
        if with_shards:
            keys = _with_shards(whole(table[sidecar.shard]), keys, sidecar)
        row, texts = _captions([(name, whole(table[name])) for name in sidecar.captions])
        return Rows(keys.cast(pa.large_binary()), row, texts, with_shards)
    except pa.ArrowException as error:
        raise ValueError(f"table of captions {path}: {_first_line(error)}") from None
    except _TableError as error:
        raise ValueError(f"table of captions {path}: {error}") from None


class _TableError(Exception):
    """What is wrong with a table, without its name."""


def joined_rows(tables: list[Rows]) -> Rows:
    """Rows of several tables, one behind the other.

    Raises:
        ValueError: some tell shards and others do not.
    """
    pa = arrow()
    if len({each.with_shards for each in tables}) > 1:
        raise ValueError("some tables of captions have a column of shards and others have none")
    before = np.cumsum([0, *(len(each.keys) for each in tables[:-1])])
    return Rows(
        pa.concat_arrays([each.keys for each in tables]),
        np.concatenate([each.row + start for each, start in zip(tables, before, strict=True)]),
        pa.concat_arrays([each.texts for each in tables]),
        tables[0].with_shards,
    )


def shard_name(path: str) -> str:
    """What a column of shards calls a tar: its name without folder and ending."""
    return re.sub(r"^.*/|\.tar$", "", path)


def _read_parquet(path: str, wanted: list[str], sidecar: Sidecar) -> Any:
    pa = arrow()
    local = scheme_of(path) == "file"
    storage = storage_of(path)
    source: str | io.BytesIO = storage.resolve(path) if local else io.BytesIO(storage.read(path))
    with pa.parquet.ParquetFile(source, memory_map=local) as file:
        names = file.schema_arrow.names
        missing = [name for name in wanted if name not in names]
        if missing:
            raise _TableError(
                f"it has no column {missing[0]!r}; it has {', '.join(map(repr, names))}"
            )
        if twice := [name for name in wanted if names.count(name) > 1]:
            raise _TableError(f"it has several columns {twice[0]!r}")
        if not sidecar.per_shard and sidecar.shard in names:
            wanted = [*wanted, sidecar.shard]
        return file.read(columns=wanted, use_threads=True)


def _text(column: Any, name: str) -> Any:
    """A column as large_string, whatever kind of text it holds."""
    pa = arrow()
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if pa.types.is_null(kind):
        return pa.nulls(len(column), pa.large_string())
    if kind in (pa.string_view(), pa.binary_view()) or pa.types.is_fixed_size_binary(kind):
        column = column.cast(pa.large_binary())
    elif not any(
        test(kind)
        for test in (
            *(pa.types.is_string, pa.types.is_large_string),
            *(pa.types.is_binary, pa.types.is_large_binary),
        )
    ):
        raise _TableError(f"column {name!r} holds {kind}; expected texts")
    try:
        return column.cast(pa.large_string())
    except pa.ArrowInvalid:
        raise _TableError(f"column {name!r} holds bytes that are no UTF-8") from None


def _keys(column: Any) -> Any:
    pa = arrow()
    if pa.types.is_integer(column.type):
        # Keys that were counted: what a tar calls 000012 is not found as 12, and not taken for it.
        column = column.cast(pa.large_string())
    keys = _text(column, "of keys")
    empty = pa.compute.or_kleene(pa.compute.is_null(keys), pa.compute.equal(keys, ""))
    if (count := pa.compute.sum(empty).as_py()) and count:
        first = pa.compute.index(empty, True).as_py()
        raise _TableError(f"{count:,} row(s) have no key, such as row {first + 1:,}")
    return keys


def _with_shards(column: Any, keys: Any, sidecar: Sidecar) -> Any:
    pa = arrow()
    if not len(keys):
        return keys
    try:
        shards = _text(column, sidecar.shard)
    except _TableError as error:
        raise _TableError(
            f"{error}, names of tars such as 00000. Where it means something else, name another "
            "column of shards, or none: --data.caption-shard ''"
        ) from None
    if shards.null_count:
        raise _TableError(f"{shards.null_count:,} row(s) have no shard")
    names = pa.compute.replace_substring_regex(shards, r"^.*/|\.tar$", "")
    return pa.compute.binary_join_element_wise(names, keys, pa.scalar(SEPARATOR, names.type))


def _captions(columns: list[tuple[str, Any]]) -> tuple[np.ndarray, Any]:
    """Rows and texts of all captions that say something: row by row, then column by column."""
    pa = arrow()
    rows, texts = [], []
    for name, column in columns:
        kind = column.type
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            row = pa.compute.list_parent_indices(column).to_numpy().astype(np.int64)
            text = _text(pa.compute.list_flatten(column), name)
        else:
            row, text = np.arange(len(column)), _text(column, name)
        said = _says_something(text)
        rows.append(row[said])
        texts.append(text.filter(pa.array(said)))
    if len(rows) == 1:
        return rows[0], texts[0]
    row = np.concatenate(rows)
    order = np.argsort(row, kind="stable")
    return row[order], pa.concat_arrays(texts).take(pa.array(order))


def _says_something(texts: Any) -> np.ndarray:
    """[N] bool: which are neither null nor blank, see ``is_blank``."""
    pa = arrow()
    if not len(texts):
        return np.zeros(0, bool)
    filled = texts.fill_null("")
    # Most are seen to say something without a look at each in Python.
    letters = pa.compute.match_substring_regex(filled, "[A-Za-z0-9]").to_numpy(zero_copy_only=False)
    entities = pa.compute.match_substring(filled, "&").to_numpy(zero_copy_only=False)
    said: np.ndarray = letters & ~entities
    doubtful = np.flatnonzero(~said)
    for i, text in zip(doubtful.tolist(), filled.take(pa.array(doubtful)).to_pylist(), strict=True):
        said[i] = not is_blank(text)
    return said


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
