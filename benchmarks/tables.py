"""``python benchmarks/tables.py`` is the former name of ``report.py``, for one release."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from benchmarks import report


def main(argv: Sequence[str] | None = None) -> None:
    """Do what ``report.py`` does, and say its name."""
    # Shown by default where a program's own file warns.
    warnings.warn(
        "benchmarks.tables is benchmarks.report now; the old name goes with the next release",
        FutureWarning,
        stacklevel=2,
    )
    report.main(argv)


if __name__ == "__main__":
    main()
