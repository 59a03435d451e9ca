"""The tables of what was measured on GPUs, what was not, and what is expected."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.parts.common.schema import DTYPES
from benchmarks.parts.common.text import digits
from benchmarks.parts.predict import table
from benchmarks.parts.step.measure import PARTS
from benchmarks.parts.suite import catalogue
from benchmarks.parts.suite.part import ROWS, Part
from benchmarks.parts.tables.runs import NOT_MEASURED, RESULTS, markdown, read_runs

Record = dict[str, Any]
# Run beside a GPU, not on it.
_ON_THE_HOST = ("benchmarks.tokenizer", "benchmarks.data_throughput")


def predicted() -> str:
    """Every row of the suite on a GPU: counts, floors, what is expected, what was measured."""
    lines = [table.cells(line, NOT_MEASURED) for line in prediction_lines(RESULTS)]
    return markdown(table.HEAD, lines)


@functools.lru_cache
def prediction_lines(directory: Path) -> list[Record]:
    """What is expected of each row of the suite, with what came of it so far."""
    return table.lines(table.gpu_records(directory))


def gpu_floors() -> str:
    """Ours by its floor, and beside it OpenCLIP's time, in all that was measured on a GPU."""
    records = table.gpu_records(RESULTS)
    ours = [one for one in records if one["role"] == "ours" and one["ratio_to_floor"] is not None]
    head = ["what", "type", "form", "on", "ms", "its floor", "by its floor", "OpenCLIP's ms"]
    lines = []
    for one in {_case(one): one for one in reversed(ours)}.values():
        theirs = next((other for other in records if _is_beside(other, one)), None)
        lines.append(
            [
                f"{_subject(one)}: {one['case']}",
                one["dtype"] or "",
                one["implementation"],
                one["device_name"].removeprefix("NVIDIA "),
                digits(one["median"]),
                digits(one["floor"]),
                f"{one['ratio_to_floor']:.2f}",
                NOT_MEASURED if theirs is None else digits(theirs["median"]),
            ]
        )
    return markdown(head, lines)


def _subject(record: Record) -> str:
    return str(record["subject"]).removesuffix("_throughput").replace("_", " ")


def _case(record: Record) -> tuple[Any, ...]:
    keys = ("device_name", "subject", "case", "implementation", "dtype", "launch")
    return tuple(record[key] for key in keys)


def _is_beside(other: Record, ours: Record) -> bool:
    """Whether a row is OpenCLIP's own in the same run."""
    keys = ("device_name", "subject", "case", "dtype", "launch", "environment")
    is_plain = other["peer"] == "OpenCLIP" and other["role"] == "peer"
    is_plain = is_plain and "," not in other["implementation"]
    return is_plain and all(other[key] == ours[key] for key in keys)


def gpu_missing() -> str:
    """The parts of the suite on a GPU, and how much of each was measured on which card."""
    records, lines = table.gpu_records(RESULTS), prediction_lines(RESULTS)
    out = []
    for part in catalogue.parts("cuda"):
        if part.kind == ROWS and part.command[1] not in _ON_THE_HOST:
            cells = (_share(part, card, records, lines) for card in table.CARDS)
            out.append([f"`{part.name}`", part.what, *cells])
    return markdown(["part", "what", *(f"one {card}" for card in table.CARDS)], out)


def _share(part: Part, card: str, records: Sequence[Record], lines: Sequence[Record]) -> str:
    """How many of a part's rows there are of a card."""
    subject = part.command[1].removeprefix("benchmarks.")
    on_card = [r for r in records if card in r["device_name"] and r["subject"] == subject]
    names = [record["implementation"] for record in on_card]
    if part.evidence:
        found = [
            any(name.startswith(one) or name.endswith(one) for name in names)
            for one in part.evidence
        ]
    else:
        mine = [line for line in lines if line["part"] == part.name]
        found = [line["measured_ms"][card] is not None for line in mine] or [bool(on_card)]
    if not any(found):
        return NOT_MEASURED
    return "measured" if all(found) else f"{sum(found)} of {len(found)} rows"


def step_parts() -> str:
    """The parts of a step on a GPU, each measured apart."""
    names = [part.replace("_", " ") for part in PARTS]
    lines = []
    for run in read_runs("step_throughput"):
        for row in run.rows:
            if row["device"].startswith("cuda") and row.get("parts_ms"):
                what = f"{row['model']}, {row['batch']:,} pairs, {DTYPES[row['precision']]}"
                cells = (digits(row["parts_ms"][part]) for part in PARTS)
                lines.append([what, row["name"], *cells])
    return markdown(["step", "", *names], _told_once(lines))


def _told_once(lines: Sequence[Sequence[str]]) -> list[list[str]]:
    """Lines whose first cell stands where it changes."""
    firsts = [""] + [line[0] for line in lines]
    return [
        ["" if line[0] == before else line[0], *line[1:]]
        for before, line in zip(firsts, lines, strict=False)
    ]
