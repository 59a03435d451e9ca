"""What was found: a last line for a person, and a file for programs."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import clipfast
from clipfast.doctor.examination import Examination
from clipfast.doctor.finding import Finding
from clipfast.doctor.situation import Situation
from clipfast.files import write_whole


def summary(findings: Sequence[Finding], seconds: float, status: int) -> str:
    """One line: how many of each kind, and the exit status."""
    counts = Counter(finding.level for finding in findings)
    return (
        f"{counts['ok']} ok, {counts['warning']} warning(s), {counts['failure']} failure(s) in "
        f"{seconds:.0f} s; exit status {status}"
        + (": warnings do not change it" if counts["warning"] and not status else "")
    )


def _finite(value: Any) -> Any:
    """A value with words for numbers that JSON has not: NaN and infinities."""
    if isinstance(value, dict):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, situation: Situation, examination: Examination, seconds: float) -> None:
    """Write findings, and what every rank has seen.

    Args:
        path: of the file.
        situation: of rank 0.
        examination: of rank 0, done.
        seconds: that it took.

    Raises:
        OSError: it cannot be written.
    """
    findings = [finding.plain() for finding in examination.findings]
    record = {
        "clipfast": clipfast.__version__,
        "ranks": situation.process.world_size,
        "device": situation.device.type,
        "status": int(any(each["level"] == "failure" for each in findings)),
        "seconds": round(seconds, 1),
        "findings": findings,
        "seen": examination.seen,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(_finite(record), indent=1).encode())
