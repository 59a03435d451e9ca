"""Accuracies of other models: a table of the user, and results of earlier runs."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipfast.eval.sets.catalogue import plain_name
from clipfast.eval.sets.tables import Table, read_table
from clipfast.names import did_you_mean

TASK = "robustness"
_MODEL = ("model", "name")
_SHIFT = ("shift", "dataset")
_REFERENCE = ("reference_acc1", "reference_accuracy", "reference")
_ACCURACY = ("shift_acc1", "acc1", "shift_accuracy", "accuracy")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Baseline:
    """Another model on one shift.

    Attributes:
        model: its name.
        shift: name of the data set.
        reference_acc1: top-1 on the reference, on the classes of the shift.
        acc1: top-1 on the shift.
    """

    model: str
    shift: str
    reference_acc1: float
    acc1: float

    @property
    def is_inside(self) -> bool:
        """Whether both accuracies have a finite logit."""
        return 0 < self.reference_acc1 < 1 and 0 < self.acc1 < 1

    def is_of(self, shift: str) -> bool:
        """Whether it is of a shift, with or without CLIP_benchmark's prefixes.

        Args:
            shift: its name.
        """
        return shift == self.shift or plain_name(shift) == plain_name(self.shift)


def read_baselines(path: Path, shifts: Sequence[str]) -> list[Baseline]:
    """Models of a table with a row per model and shift.

    Args:
        path: of a table with the columns ``model``, ``shift``, ``reference_acc1`` and
            ``shift_acc1``, shares in [0, 1]. ``shift`` may be left out where there is one.
        shifts: names of those that are measured.

    Raises:
        ValueError: the table cannot be read, a column is missing, or a cell does not fit.
    """
    table = read_table(path)
    model, reference, accuracy = (
        table.column(kind, usual)
        for kind, usual in (
            ("model", _MODEL),
            ("accuracy on the reference", _REFERENCE),
            ("accuracy on the shift", _ACCURACY),
        )
    )
    if not any(name in table.columns for name in _SHIFT) and len(shifts) == 1:
        of_shift = [shifts[0]] * len(table)
    else:
        of_shift = [str(cell or "") for cell in table.columns[table.column("shift", _SHIFT)]]
    found = [
        Baseline(
            str(table.columns[model][row]),
            of_shift[row],
            _share(table, row, reference),
            _share(table, row, accuracy),
        )
        for row in range(len(table))
    ]
    empty = next((i for i, one in enumerate(found) if not one.model or not one.shift), None)
    if empty is not None:
        raise ValueError(f"{table.where(empty)}: a row needs the names of model and shift")
    unknown = sorted({b.shift for b in found if not any(b.is_of(shift) for shift in shifts)})
    if unknown:
        _log.warning(
            "%s: rows of %s are passed over, which is not measured.%s",
            path,
            ", ".join(unknown[:5]),
            did_you_mean(unknown[0], shifts),
        )
    return found


def read_results(paths: Sequence[Path], reference: str) -> list[Baseline]:
    """Models of earlier results of this task.

    Of a model that was adapted to the reference this accuracy counts, else that of zero-shot: its
    first classifier.

    Args:
        paths: of the files.
        reference: name of the set that shifts are of.

    Raises:
        ValueError: a file is no result of this task, or is one of another reference.
    """
    found = []
    for path in paths:
        content = _content(path)
        if content["dataset"] != reference:
            raise ValueError(
                f"{path} is of the reference {content['dataset']!r}, and this is {reference!r}"
            )
        name = f"{content['model']} ({content['pretrained']})"
        chosen: dict[str, dict[str, Any]] = {}
        for entry in content["shifts"]:
            if entry["classifier"] == "adapted" or entry["dataset"] not in chosen:
                chosen[entry["dataset"]] = entry
        found += [
            Baseline(name, shift, entry["reference_acc1"], entry["acc1"])
            for shift, entry in chosen.items()
        ]
    return found


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {str(path)!r}: {error.strerror}; look at its path") from None
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is no JSON: {error}") from None
    entries = content.get("shifts") if isinstance(content, dict) else None
    numbers = ("acc1", "reference_acc1")
    is_sound = (
        isinstance(entries, list)
        and content.get("task") == TASK
        and {"dataset", "model", "pretrained"} <= set(content)
        and all(
            isinstance(entry, dict)
            and {"dataset", "classifier"} <= set(entry)
            and all(isinstance(entry.get(key), int | float) for key in numbers)
            for entry in entries
        )
    )
    if not is_sound:
        raise ValueError(f"{str(path)!r} is no result of the task {TASK!r}: name one of them")
    found: dict[str, Any] = content
    return found


def _share(table: Table, row: int, column: str) -> float:
    cell = table.columns[column][row]
    try:
        value = float(cell)
    except (TypeError, ValueError):
        value = float("nan")
    if not 0 <= value <= 1:
        raise ValueError(
            f"{table.where(row)}: {column} is {cell!r}; write accuracies as shares in [0, 1]"
        )
    return value
