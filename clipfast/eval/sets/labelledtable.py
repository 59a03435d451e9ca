"""A table of image paths and labels; its further columns become attributes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipfast.data.columns import IMAGE_COLUMNS
from clipfast.eval.sets.files import ImageFiles
from clipfast.eval.sets.found import FoundSet
from clipfast.eval.sets.imageroots import check_files, find_root
from clipfast.eval.sets.naming import sorted_names
from clipfast.eval.sets.tables import Table, read_table

IMAGE_NAMES = (*IMAGE_COLUMNS, "filename", "file_name", "image_path", "image_name", "img")
LABEL_NAMES = ("label", "class", "target", "category")


def read_labelled_table(path: Path, split: str) -> FoundSet:
    """Images, labels and attributes of a table.

    Labels are the whole numbers of the column, or its words in sorted order, those of all splits.

    Args:
        path: of a ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet``; its first row holds names.
        split: taken where the table has a column ``split``.

    Raises:
        ValueError: the table cannot be read, a column is missing, or a row has no file or no label.
    """
    every = read_table(path)
    image, label = every.column("image", IMAGE_NAMES), every.column("label", LABEL_NAMES)
    table = every.of_split(split)
    # All splits give the words their places: labels of one mean the same in another.
    label_names = _label_names(every, label)
    labels = _labels(table, label, label_names)
    names = [_text(table, image, row) for row in range(len(table))]
    root = find_root(path, None, names[0]) if names else path.parent
    files = [str(root / name) for name in names]
    check_files(path, files, [table.where(row) for row in range(len(table))])
    return FoundSet(
        name=path.stem,
        labels=labels,
        encoded=ImageFiles(files),
        label_names=label_names,
        attributes={
            name: as_column(cells)
            for name, cells in table.columns.items()
            if name not in (image, label, "split")
        },
        beside=path.parent,
    )


def as_column(cells: Sequence[Any]) -> np.ndarray:
    """Cells as an array: whole numbers, real numbers (nothing is NaN), or texts.

    A numeral with a zero in front, such as a code of 007, stays a text.
    """
    texts = ["" if cell is None else str(cell) for cell in cells]
    whole = [_whole(text) for text in texts]
    if texts and None not in whole:
        return np.array(whole, np.int64)
    real = [_real(text) for text in texts]
    if any(texts) and None not in real:
        return np.array(real, np.float64)
    return np.array(texts, np.str_)


def _label_names(table: Table, column: str) -> tuple[str, ...] | None:
    """The words that are labels, sorted; None where labels are numbers."""
    cells = {_text(table, column, row) for row in range(len(table))}
    if all(cell.removeprefix("-").isdecimal() for cell in cells):
        return None
    if all(_real(cell) is not None for cell in cells):
        number = next(cell for cell in cells if not cell.removeprefix("-").isdecimal())
        raise ValueError(
            f"{str(table.path)!r}: labels such as {number!r} are no whole numbers; write class "
            "numbers from 0 on, or class names"
        )
    return tuple(sorted_names(list(cells)))


def _labels(table: Table, column: str, names: tuple[str, ...] | None) -> np.ndarray:
    cells = [_text(table, column, row) for row in range(len(table))]
    if names is None:
        return np.array([int(cell) for cell in cells], np.int64)
    place = {name: i for i, name in enumerate(names)}
    return np.array([place[cell] for cell in cells], np.int64)


def _text(table: Table, column: str, row: int) -> str:
    cell = table.columns[column][row]
    if isinstance(cell, list | dict | bytes):
        raise ValueError(
            f"{table.where(row)}: column {column!r} holds no text; write paths of image files, and "
            "one label per row"
        )
    text = "" if cell is None else str(cell).strip()
    if not text:
        raise ValueError(f"{table.where(row)}: column {column!r} is empty; fill it")
    return text


def _whole(text: str) -> int | None:
    digits = text.removeprefix("-")
    plain = digits.isdecimal() and (digits == "0" or not digits.startswith("0"))
    return int(text) if plain and len(digits) < 19 else None


def _real(text: str) -> float | None:
    if not text:
        return float("nan")
    digits = text.removeprefix("-")
    if digits.isdecimal() and digits.startswith("0") and digits != "0":
        return None
    try:
        return float(text)
    except ValueError:
        return None
