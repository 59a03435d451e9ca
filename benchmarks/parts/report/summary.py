"""What a run of the suite has measured, as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.parts.common.text import align, digits, mebibytes, times

_HEAD = ["", "type", "launch", "median", "p20", "p80", "MiB", "error", "x floor"]


def summary(records: Sequence[dict[str, Any]]) -> str:
    """One table per device and subject, a line per row, cases apart."""
    parts = []
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault((record["device_name"], record["subject"]), []).append(record)
    for (device, subject), chosen in groups.items():
        lines = [_HEAD]
        for case in dict.fromkeys(record["case"] for record in chosen):
            lines.append([case, *[""] * (len(_HEAD) - 1)])
            lines += [_line(record) for record in chosen if record["case"] == case]
        parts.append(f"{subject}, {device}, {_commits(chosen)}\n{align(lines)}")
    return "\n\n".join(parts)


def _line(record: dict[str, Any]) -> list[str]:
    name = f"  {record['implementation']}"
    if record["peer"] and str(record["version"]) not in name:
        name += f" ({record['peer']} {record['version']})"
    unit = record["unit"] or ""
    median = f"{digits(record['median'])} {unit}" if record["median"] is not None else ""
    return [
        name,
        record["dtype"] or "",
        record["launch"],
        median,
        digits(record["p20"]),
        digits(record["p80"]),
        mebibytes(record["peak_bytes"]),
        "" if record["error"] is None else f"{record['error']:.0e}",
        times(record["ratio_to_floor"]).removesuffix("x"),
    ]


def _commits(records: Sequence[dict[str, Any]]) -> str:
    found = {
        f"{str(record['commit'])[:7]}{' with changes' if record['changed'] else ''}"
        for record in records
    }
    return ", ".join(sorted(found))
