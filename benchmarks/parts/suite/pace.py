"""How much slower this machine is than the one that the parts' costs were taken on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.parts.common.rows import read_file
from benchmarks.parts.suite.catalogue import REFERENCE

# A rate that is a hundred times off is no guide to what a part takes.
_MOST = 4.0


def slowness(device: str, ceilings: Path) -> Callable[[], float]:
    """A function that reads the first part's rows, once they are there.

    Args:
        device: ``cpu`` or ``cuda``.
        ceilings: File of the rows of ``benchmarks/ceilings.py``.

    Returns:
        Gives the rate of products there by the one here, at least 1; 1 where there are no rows.
    """
    dtype, reference = REFERENCE[device]

    def read() -> float:
        rows = read_file(ceilings) if ceilings.exists() else []
        rates = [row["flop_per_s"] for row in rows if row.get("dtype") == dtype]
        return min(_MOST, max(1.0, reference / max(rates))) if rates else 1.0

    return read
