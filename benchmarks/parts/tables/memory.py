"""The table of ``docs/measured/memory.md``."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.parts.common.text import mebibytes
from benchmarks.parts.memory import report
from benchmarks.parts.memory.cases import FORMS
from benchmarks.parts.tables.runs import (
    NOT_MEASURED,
    Run,
    by_machine,
    markdown,
    memory,
    read_runs,
)


def batch_memory() -> str:
    """Memory by batch and form, and the growth beside its count."""
    return by_machine(read_runs("batch_memory"), _batch_memory)


def _batch_memory(runs: Sequence[Run]) -> str:
    rows = [row for run in runs for row in run.rows]
    batches = sorted({row["batch"] for row in rows})
    head = ["MiB at the peak", *(f"{batch:,} pairs" for batch in batches)]
    head += ["growth, measured", "growth, counted"]
    lines = []
    for form, name in FORMS.items():
        own = {row["batch"]: row for row in rows if row["form"] == form}
        found = report.growth(list(own.values()))
        ends = [NOT_MEASURED] * 2 if found is None else [mebibytes(each) for each in found]
        cells = [memory(own.get(batch), "resident_bytes") for batch in batches]
        lines.append([name, *cells, *ends])
    return markdown(head, lines)
