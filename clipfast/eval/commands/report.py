"""``report``: one page and one table of many results."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from clipfast.eval.report import Report, write_report

_MOST_NAMED = 10


def add(subparsers: Any) -> None:
    """Add the subcommand.

    Args:
        subparsers: of the command line.
    """
    text = "make an HTML page and a CSV of the results in a folder"
    parser = subparsers.add_parser("report", help=text, description=text)
    parser.add_argument("results", type=Path, help="folder of the results, also CLIP_benchmark's")
    parser.add_argument("--out", type=Path, help="folder of both files; default: `report` in it")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Read, write, and say what is odd.

    Args:
        options: as parsed.

    Returns:
        Paths of both files, and counts.

    Raises:
        ValueError: there is no result.
        OSError: a file cannot be written.
    """
    results = Path(options.results)
    made = write_report(results, Path(options.out) if options.out else results / "report")
    print(*told(made), sep="\n")
    return {
        "page": str(made.page),
        "table": str(made.table),
        "results": made.results,
        "odd": {str(odd.path): odd.why for odd in made.odd},
    }


def told(made: Report) -> list[str]:
    """Lines for a person.

    Args:
        made: of ``write_report``.
    """
    lines = [f"{made.results} result(s): {made.page}, {made.table}"]
    if made.odd:
        lines.append(f"{len(made.odd)} file(s) or parts of them cannot be read and are left out:")
        lines += [f"  {odd.path}: {odd.why}" for odd in made.odd[:_MOST_NAMED]]
        if len(made.odd) > _MOST_NAMED:
            lines.append(f"  and {len(made.odd) - _MOST_NAMED} more, named on the page")
    return lines
