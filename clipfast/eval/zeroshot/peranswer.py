"""Answers on single images, as a file: what ``python -m clipfast.curate overlap`` reads."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from clipfast.data.arrow import import_arrow
from clipfast.files import write_whole

COLUMNS = ("row", "label", "predicted", "correct")


def write_answers(
    path: Path, places: Tensor, labels: Tensor, predicted: Tensor, names: Sequence[str]
) -> None:
    """Write a row per image: its place in the set, its class, the answer, and 1 where it is right.

    Args:
        path: of the file: ``.parquet``, or anything else for CSV.
        places: ``[N]`` int64, of the images in their set.
        labels: ``[N]`` int64.
        predicted: ``[N]`` int64.
        names: of the classes.

    Raises:
        ValueError: Parquet is asked for and pyarrow is not installed.
        OSError: it cannot be written.
    """
    said = zip(labels.tolist(), predicted.tolist(), strict=True)
    rows = [
        (place, names[label], names[answer], int(label == answer))
        for place, (label, answer) in zip(places.tolist(), said, strict=True)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, _parquet(path, rows) if path.suffix == ".parquet" else _csv(rows))


def _csv(rows: Sequence[tuple[int, str, str, int]]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    return text.getvalue().encode()


def _parquet(path: Path, rows: Sequence[tuple[int, str, str, int]]) -> bytes:
    pyarrow = import_arrow(
        f"{path}: Parquet is written by pyarrow, which is not installed: pip install pyarrow, "
        "or give --answers a name that ends in .csv"
    )
    columns = zip(*rows, strict=True)
    table = pyarrow.table(dict(zip(COLUMNS, map(list, columns), strict=True)))
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    return buffer.getvalue()
