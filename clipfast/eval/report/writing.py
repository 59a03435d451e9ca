"""Write the page and the table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clipfast.eval.report.context import Context
from clipfast.eval.report.csvfile import csv_of
from clipfast.eval.report.page import page
from clipfast.eval.report.reading import Odd, read_results
from clipfast.files import write_whole

PAGE = "index.html"
TABLE = "results.csv"


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        page: path of the HTML.
        table: path of the CSV.
        results: files that were read.
        odd: files, and parts of files, that cannot be read.
    """

    page: Path
    table: Path
    results: int
    odd: tuple[Odd, ...]


def write_report(folder: Path, out: Path) -> Report:
    """Make a page and a table of all results in a folder.

    Args:
        folder: of the results, at any depth.
        out: folder of ``index.html`` and ``results.csv``.

    Returns:
        What was written, and what could not be read.

    Raises:
        ValueError: there is no result.
        OSError: a file cannot be written.
    """
    results, odd = read_results(folder)
    context = Context(results, odd)
    # The page first: its sections find what is damaged.
    html = page(context, folder).encode("utf-8", "replace")
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / PAGE, html)
    write_whole(out / TABLE, csv_of(results, folder))
    return Report(out / PAGE, out / TABLE, len(results), tuple(context.odd))
