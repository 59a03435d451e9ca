"""Rows of a table in JSON lines: one object on each line."""

import io
import json
import re
from collections.abc import Iterator
from typing import Any

from clipfast.data.captionlist import kind_of
from clipfast.data.columns import both_columns
from clipfast.data.packitem import TableOptions
from clipfast.data.tablefound import Found, where
from clipfast.data.tabletext import is_text
from clipfast.storage.paths import split

_ARRAY = re.compile(r"\[\s*([\[{].*)?")


def read_json_lines(path: str, text: io.TextIOWrapper, options: TableOptions) -> Iterator[Found]:
    """Rows in order; empty lines are none.

    Args:
        path: of the table, for messages.
        text: the table.
        options: names of columns. The first object that has both says which are taken.

    Raises:
        ValueError: it is JSON of another form, or none of its objects has both columns.
    """
    encoding = text.encoding.upper().removesuffix("-SIG")
    columns: tuple[str, str] | None = None
    without: ValueError | None = None
    # The first lines, which tell the form of all.
    first: list[str] = []
    for number, line in enumerate(text, 1):
        if not line.strip("\ufeff \t\r\n"):
            continue
        line = line.removeprefix("\ufeff")
        if len(first) < 2:
            first.append(line.strip())
            if other := _other_form(first):
                raise ValueError(f"{path!r} is {other}, not JSON lines; write one object a line")
        found = Found(where(split(path)[1], number, number))
        try:
            row = _parsed(line, encoding)
        except ValueError as error:
            found.reason = str(error)
            yield found
            continue
        if columns is None:
            names = list(row)
            try:
                image, caption = both_columns(path, names, options)
                columns = names[image], names[caption]
            except ValueError as error:
                without = without or error
                found.reason = f"row has no columns for image and caption, but {names}"
                yield found
                continue
        found.image_column, found.caption_column = columns
        found.image, found.caption = (row.get(column) for column in columns)
        yield found
    if columns is None and without is not None:
        raise without


def _other_form(first: list[str]) -> str:
    """What JSON this is instead of JSON lines; "" where its first line or two do not say so."""
    above, line = first[0], first[-1]
    if len(first) == 1:
        if _ARRAY.fullmatch(line):
            return "a JSON array"
        spread = line.startswith("{") and line.endswith(("{", "["))
    else:
        # Behind a row that was cut, another row begins.
        spread = above.startswith("{") and line.startswith(('"', "}")) and not _is_json(above)
    return "JSON with objects over several lines" if spread else ""


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _parsed(line: str, encoding: str) -> dict[str, Any]:
    """The object of a line."""
    if not is_text(line):
        raise ValueError(f"row is not {encoding}; name the table's encoding with --encoding")
    try:
        row = json.loads(line, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("row is not JSON: nested too deep") from None
    except ValueError as error:
        raise ValueError(f"row is not JSON, one object on each line: {error}") from None
    if not isinstance(row, dict):
        kind = "a text" if isinstance(row, str) else "null" if row is None else kind_of(row)
        raise ValueError(f"row is {kind}, not a JSON object")
    return row


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands twice in it")
    return row
