"""Predictions beside what was measured, for the page and for ``suite --predict``."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.parts.common.rows import RESULTS
from benchmarks.parts.common.text import align, digits
from benchmarks.parts.predict.cases import Prediction, predict
from benchmarks.parts.predict.counts import BYTES_PER_S
from benchmarks.parts.predict.known import CARD, KNOWN, NOTED
from benchmarks.parts.report.merge import read_records
from benchmarks.parts.suite import catalogue

CARDS = tuple(BYTES_PER_S)
Record = dict[str, Any]


@dataclass(frozen=True)
class Efficiency:
    """What a kernel needed of its floor on the H200.

    Attributes:
        ratio: Its time by the floor of the same case there.
        source: Where that stands.
    """

    ratio: float
    source: str


def gpu_records(directory: Path | None = None) -> list[Record]:
    """All rows here that were measured on a GPU, the newest first."""
    found = [
        record
        for path in sorted((directory or RESULTS).glob("*.jsonl"))
        for record in read_records(path)
        if record["device"].startswith("cuda")
    ]
    return sorted(found, key=_date, reverse=True)


def measured(
    one: Prediction, records: Sequence[Record], card: str, launch: str = "eager"
) -> Record | None:
    """The newest row of this prediction on a card; eager launches are what users have."""
    wanted = replace(one, implementation=one.implementation + ", graph" * (launch == "graph"))
    for record in records:
        is_here = card in record["device_name"] and record["launch"] == launch
        if is_here and _is_of(record, wanted):
            return record
    return None


def efficiency(
    one: Prediction, predictions: Sequence[Prediction], records: Sequence[Record]
) -> Efficiency | None:
    """The same row's on the H200; else that of the same kernel and type at the nearest work.

    A note is taken before an older row: it is of a newer kernel.
    """
    found: list[tuple[float, Efficiency]] = []
    for other in predictions:
        if _kernel(other) != _kernel(one):
            continue
        is_same = other.case == one.case
        away = abs(math.log(_size(other) / _size(one))) + (not is_same) + (other.dtype != one.dtype)
        noted = next((known for known in KNOWN if _is_known(known, other)), None)
        row = measured(other, records, CARD)
        if noted is not None and (row is None or _date(row) < NOTED):
            ms, source = noted.ms, noted.source
        elif row is not None:
            ms, source = row["median"], f"row of the {CARD}"
        else:
            continue
        if not is_same or other.dtype != one.dtype:
            source += f", {other.case}, {other.dtype}"
        found.append((away, Efficiency(ms / other.floor_ms(CARD), source)))
    return min(found, key=lambda pair: pair[0])[1] if found else None


def _date(record: Record) -> str:
    return str(record["environment"].get("date") or "")


def _kernel(one: Prediction) -> tuple[str, ...]:
    """What rows of one kernel have in common: fp16 and bf16 take the same, steps by their tower."""
    kind = "half" if one.dtype in ("bf16", "fp16") else one.dtype
    tower = ("ViT" if "ViT" in one.case else "RN") if one.subject == "step_throughput" else ""
    return one.subject, one.implementation, kind, tower


def _size(one: Prediction) -> float:
    return max(one.flop, one.bytes)


def _name(one: Prediction) -> tuple[str, ...]:
    return one.subject, one.case, one.implementation, one.dtype


def _is_of(record: Record, one: Prediction) -> bool:
    fields = ("subject", "case", "implementation", "dtype")
    return tuple(record[field] for field in fields) == _name(one)


def _is_known(known: Any, one: Prediction) -> bool:
    return (
        known.subject == one.subject
        and one.case.startswith(known.case)
        and known.implementation == one.implementation
        and known.dtype == one.dtype
    )


def lines(records: Sequence[Record] | None = None) -> list[Record]:
    """One line per row of the suite on a GPU: counts, floors, what is expected, what came.

    Args:
        records: Rows measured on GPUs; those here if None.

    Returns:
        With ``floor_ms``, ``expected_ms`` and ``measured_ms`` by card.
    """
    records = gpu_records() if records is None else records
    # Two parts may measure one case.
    named: dict[tuple[str, ...], Prediction] = {}
    for one in predict(catalogue.parts("cuda")):
        named.setdefault(_name(one), one)
    predictions = list(named.values())
    found = []
    for one in predictions:
        known = efficiency(one, predictions, records)
        floors = {card: one.floor_ms(card) for card in CARDS}
        rows = {card: measured(one, records, card) for card in CARDS}
        replays = {card: measured(one, records, card, "graph") for card in CARDS}
        found.append(
            {
                **{key: value for key, value in asdict(one).items() if key != "work"},
                "flop": one.flop,
                "bytes": one.bytes,
                "floor_ms": floors,
                "expected_ms": {
                    card: None if known is None else floor * known.ratio
                    for card, floor in floors.items()
                },
                "expected_by": known.source if known else None,
                "measured_ms": {card: row["median"] if row else None for card, row in rows.items()},
                "graph_ms": {card: row["median"] if row else None for card, row in replays.items()},
            }
        )
    return found


HEAD = ("what", "type", "form", "TFLOP", "GB", "floor ms H100, H200", "expected", "by", "measured")


def cells(line: Record, not_measured: str) -> list[str]:
    """One line as text."""
    floors, expected = line["floor_ms"], line["expected_ms"]
    came = []
    for card, ms in line["measured_ms"].items():
        if ms is not None:
            graph = line["graph_ms"][card]
            came.append(f"{card} {digits(ms)}" + (f" (graph {digits(graph)})" if graph else ""))
    subject = line["subject"].removesuffix("_throughput").replace("_", " ")
    return [
        f"{subject}: {line['case']}",
        line["dtype"],
        line["implementation"],
        digits(line["flop"], 1e12) if line["flop"] else "",
        digits(line["bytes"], 1e9),
        ", ".join(digits(floors[card]) for card in CARDS),
        ", ".join(digits(expected[card]) for card in CARDS) if line["expected_by"] else "",
        line["expected_by"] or "",
        ", ".join(came) or not_measured,
    ]


def write_predictions(folder: Path | None) -> None:
    """Print all predictions; write them to ``predictions.jsonl`` where a folder is given."""
    found = lines()
    print(align([HEAD, *(cells(line, "") for line in found)]))
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "predictions.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in found))
        print(f"\n{path}")
