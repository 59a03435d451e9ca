"""Takes the rows of a run of the suite over into ``benchmarks/results``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.parts.common.schema import to_record, to_row, validate
from clipfast.files import write_whole

Record = dict[str, Any]


def read_folder(folder: Path) -> list[Record]:
    """The rows of a run of the suite, or of any folder of JSON lines, in the one form.

    Args:
        folder: With ``rows/NAME.jsonl``, or with ``NAME.jsonl`` itself.

    Raises:
        SystemExit: There are none, or a line is none; names the file and the line.
    """
    inner = folder / "rows"
    files = sorted((inner if inner.is_dir() else folder).glob("*.jsonl"))
    records = [record for path in files for record in read_records(path)]
    if not records:
        raise SystemExit(f"{folder}: no rows; expected rows/NAME.jsonl, as the suite writes them")
    return records


def read_records(path: Path) -> list[Record]:
    """The records of one file; rows of the older form are brought into the one form.

    Raises:
        SystemExit: A line is no row; says which, and why.
    """
    records = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            record = json.loads(line)
            records.append(to_record(to_row(record)) if "schema" not in record else record)
            validate(records[-1])
        except (ValueError, AttributeError) as error:
            raise SystemExit(f"{path}:{number}: {error}") from None
    return records


def key_of(record: Record) -> tuple[str, ...]:
    """What a newer row takes the place of: device, subject, case and type; never another card."""
    kind = record["device"].split(":")[0]
    return (kind, record["device_name"], record["subject"], record["case"], str(record["dtype"]))


def merge(records: Sequence[Record], results: Path) -> list[str]:
    """Put records in the place of the older ones of the same key.

    All older rows of a key go: only rows of one run stand side by side.

    Args:
        records: Of one run of the suite.
        results: Folder of ``SUBJECT.jsonl``.

    Returns:
        One line per subject: what came and what went.
    """
    told = []
    for subject in dict.fromkeys(record["subject"] for record in records):
        new = [record for record in records if record["subject"] == subject]
        keys = set(map(key_of, new))
        path = results / f"{subject}.jsonl"
        old = read_records(path) if path.exists() else []
        kept = [record for record in old if key_of(record) not in keys]
        results.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(record) + "\n" for record in [*kept, *new])
        write_whole(path, lines.encode())
        told.append(f"{path}: {len(new)} rows came, {len(old) - len(kept)} went, {len(kept)} stay")
    return told
