"""Answers of a model on single images, from a file."""

from __future__ import annotations

import csv
import io

import numpy as np

from clipfast.curate.engine.parts import arrow
from clipfast.storage import storage_of

_RIGHT = {"1": True, "true": True, "0": False, "false": False}


def read_answers(path: str, images: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of images, and whether the answer on each is right.

    Args:
        path: of a CSV or ``.parquet`` with the columns row and correct, as
            ``python -m clipfast.eval zeroshot --answers`` writes it.
        images: of the set.

    Returns:
        ``[N]`` int64, rising, and ``[N]`` bool.

    Raises:
        ValueError: it is no such file, or not of this set.
        OSError: it cannot be read.
    """
    data = storage_of(path).read(path)
    try:
        pairs = _parquet(data) if path.endswith(".parquet") else _csv(data)
    except (KeyError, ValueError, OSError, csv.Error) as error:
        raise ValueError(
            f"{path} holds no answers ({error}): expected columns row (the image's place in the "
            "set) and correct (1 or 0), as python -m clipfast.eval zeroshot --answers writes them"
        ) from None
    rows = np.array([row for row, _ in pairs], np.int64)
    correct = np.array([right for _, right in pairs], bool)
    order = np.argsort(rows, kind="stable")
    rows, correct = rows[order], correct[order]
    if not len(rows) or rows[0] < 0 or rows[-1] >= images or (np.diff(rows) == 0).any():
        raise ValueError(
            f"{path}: expected each row once, of 0 to {images - 1:,}; it has {len(rows):,} rows"
            + (f" from {rows[0]:,} to {rows[-1]:,}" if len(rows) else "")
            + ": give the answers on this set"
        )
    return rows, correct


def _csv(data: bytes) -> list[tuple[int, bool]]:
    reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""))
    return [(int(line["row"]), _RIGHT[line["correct"].strip().lower()]) for line in reader]


def _parquet(data: bytes) -> list[tuple[int, bool]]:
    pa = arrow()
    table = pa.parquet.read_table(io.BytesIO(data), columns=["row", "correct"])
    rows, correct = (table[name].to_pylist() for name in ("row", "correct"))
    return [(int(row), bool(right)) for row, right in zip(rows, correct, strict=True)]
