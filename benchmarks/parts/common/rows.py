"""Rows on disk: JSON lines in ``benchmarks/results``, each with the stamp of its environment.

write_rows("tokenizer", rows)
rows = read_rows("tokenizer")
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.parts.common.harness import CheckFailed, Row

RESULTS = Path(__file__).parents[2] / "results"


def write_rows(
    subject: str,
    rows: Sequence[Row],
    *,
    path: Path | None = None,
    directory: Path | None = None,
    append: bool = False,
    retain: Callable[[Row], bool] | None = None,
) -> Path:
    """Write rows as JSON lines, each with the stamp of the environment.

    Args:
        subject: File name without its ending.
        rows: Rows of :func:`harness.measure`; a row without a passed check is refused.
        path: File to write, instead of the subject's.
        directory: Folder of the subject's file, ``benchmarks/results`` if None.
        append: Keep the rows that are there, for runs on several machines.
        retain: Keep those of the rows there for which this is true, as they were written.

    Returns:
        The file written.

    Raises:
        CheckFailed: A row did not come from a checked measurement.
    """
    from clipfast.env import stamp

    for row in rows:
        if row.get("checked") is not True:
            raise CheckFailed(f"row {row.get('name')!r} has no passed check: it is not written")
    environment = stamp()
    path = path or (directory or RESULTS) / f"{subject}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    retained = read_file(path) if retain and not append and path.exists() else []
    with path.open("a" if append else "w") as file:
        for row in filter(retain, retained):
            file.write(json.dumps(row) + "\n")
        for row in rows:
            file.write(json.dumps({"subject": subject, **row, "environment": environment}) + "\n")
    return path


def read_rows(subject: str, *, directory: Path | None = None) -> list[Row]:
    """The rows of an earlier :func:`write_rows`."""
    return read_file((directory or RESULTS) / f"{subject}.jsonl")


def read_file(path: Path) -> list[Row]:
    """The rows of one file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def save(
    subject: str,
    rows: Sequence[Row],
    draw: Callable[[Sequence[Row], Path], Path],
    options: argparse.Namespace,
    case_of: Callable[[Row], Any] | None = None,
) -> None:
    """Write and draw the rows of one run, and say where they are.

    Rows and plot go to ``benchmarks/results`` under the default options and with ``--save``.
    Rows of other devices are kept there. With ``--save`` rows of other cases are kept too.

    Args:
        subject: Name of the files in ``benchmarks/results``.
        rows: Of one run on one device.
        draw: Makes the plot from all rows of the file.
        options: Of :func:`options.parse`: ``json`` and ``plot`` are files to write instead.
        case_of: What rows of one case have in common, and no others.
    """
    is_kept = options.is_default or getattr(options, "save", False)
    path = options.json
    if path is not None:
        write_rows(subject, rows, path=path)
    elif is_kept:
        kind = rows[0]["device"].split(":")[0]
        cases = [] if options.is_default or case_of is None else [case_of(row) for row in rows]

        def retain(row: Row) -> bool:
            return case_of(row) not in cases if cases else not row["device"].startswith(kind)

        path = write_rows(subject, rows, retain=retain)
    print(f"\nrows: {path or 'not written; --json PATH writes them'}")

    picture = options.plot or (RESULTS / f"{subject}.png" if is_kept else None)
    if picture is not None:
        # From the file, whose rows carry the machine's name, and other devices' rows too.
        draw(rows if path is None else read_file(path), picture)
    print(f"plot: {picture or 'not drawn; --plot PATH draws it'}")


def device_name(row: Row) -> str:
    """What the row was measured on, as its stamp has it, else the device's type."""
    device: dict[str, Any] = row.get("environment", {}).get("device", {})
    if row["device"].startswith("cuda"):
        gpus = device.get("gpus") or ["CUDA"]
        return str(gpus[0]["name"] if isinstance(gpus[0], dict) else gpus[0])
    threads = f", {device['threads']} threads" if device.get("threads") else ""
    return f"{device.get('cpu') or 'CPU'}{threads}"


def by_case(rows: Sequence[Row], case_of: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    """Rows by what ``case_of`` says of them, in the order in which they come."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(case_of(row), []).append(row)
    return groups


def faster(ours: Row | None, theirs: Row | None) -> float | None:
    """How many times as fast ours is.

    The median over rounds of alternating runs. Where the benchmark has none, both are set in
    ratio to what it has them for. None where either row is missing.
    """
    if ours is None or theirs is None:
        return None
    if (paired := theirs.get(f"ratio_to_{ours['name']}")) is not None:
        return paired
    for key in theirs:
        if key.startswith("ratio_to_") and key != "ratio_to_floor" and key in ours:
            return theirs[key] / ours[key]
    return theirs["median_ms"] / ours["median_ms"]
