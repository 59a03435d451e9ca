"""The tables of ``docs/measured/data.md``."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.parts.common.harness import Row
from benchmarks.parts.common.text import digits
from benchmarks.parts.tables.gpu import prediction_lines
from benchmarks.parts.tables.runs import (
    NOT_MEASURED,
    RESULTS,
    Run,
    by_machine,
    markdown,
    number,
    peer_name,
    ratio,
    read_runs,
)

FORMS = {"clipfast": "exact", "clipfast-scaled": "scaled"}


def data() -> str:
    """Images per second by pictures, cores and form."""
    return by_machine(read_runs("data_throughput"), _data)


def _data(runs: Sequence[Run]) -> str:
    head = ["pictures", "cores", "form", "images/s", "per core", f"faster than {peer_name(runs)}"]
    head += ["per core", "without tokens", "than webdataset", "off by, levels"]
    lines = []
    for case in (case for run in runs for case in run.cases("pictures", "image_size", "cores")):
        by_key = {row["contender"]: row for row in case.rows}
        for key, form in FORMS.items():
            if ours := by_key.get(key):
                lines.append(
                    [
                        f"{ours['pictures']}, to {ours['image_size']}",
                        str(ours["cores"]),
                        form,
                        number(ours, "items_per_s"),
                        number(ours, "items_per_core_s"),
                        _faster(ours, by_key.get("dataloader"), "ratio_to"),
                        _faster(ours, by_key.get("dataloader"), "cpu_ratio_to"),
                        _faster(ours, by_key.get("no-tokens"), "cpu_ratio_to"),
                        _faster(ours, by_key.get("webdataset"), "cpu_ratio_to"),
                        number(ours, "mean_difference"),
                    ]
                )
    return markdown(head, lines)


def _faster(ours: Row, theirs: Row | None, kind: str) -> str:
    return NOT_MEASURED if theirs is None else ratio(theirs.get(f"{kind}_{ours['name']}"))


# The pictures and the size that cores are counted for.
COUNTED = {"pictures": "photographs, 640 x 512", "image_size": 224, "cores": 1}
CARD = "H200"


def data_cores() -> str:
    """Cores that keep a GPU busy, where the CPU decodes: what a step takes by what a core gives."""
    rates = _rates()
    head = ["step", f"ms on one {CARD}", "images/s", *(f"cores, {name}" for name in rates)]
    lines = []
    for line in prediction_lines(RESULTS):
        if line["subject"] != "step_throughput":
            continue
        measured, expected = line["measured_ms"][CARD], line["expected_ms"][CARD]
        took = expected if measured is None else measured
        batch = int(line["case"].split("batch ")[1].split(",")[0])
        need = 1e3 * batch / took
        told = f"{digits(took)}, {'expected' if measured is None else 'measured'}"
        cores = (NOT_MEASURED if rate is None else digits(need / rate) for rate in rates.values())
        lines.append([line["case"].removesuffix(", captions web"), told, digits(need), *cores])
    return markdown(head, lines)


def _rates() -> dict[str, float | None]:
    """Images per second of a core, by loader."""
    for run in read_runs("data_throughput"):
        if run.find(**COUNTED):
            keys = ("clipfast", "dataloader")
            rows = {key: run.find(contender=key, **COUNTED) for key in keys}
            return {
                key if row is None else row["name"]: row and row["items_per_core_s"]
                for key, row in rows.items()
            }
    return {"clipfast": None}
