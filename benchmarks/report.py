"""Writes the tables and plots of README and docs from rows; shows and takes over rows of a suite.

    python benchmarks/report.py                          tables, and headline.png
    python benchmarks/report.py --check                  status 1 where a page says other than rows
    python benchmarks/report.py --plots                  every other plot that rows suffice for, too
    python benchmarks/report.py --rows FOLDER            shows the rows of a run of the suite
    python benchmarks/report.py --rows FOLDER --merge    takes them into benchmarks/results, too

Nothing is measured. Tables stand between ``<!-- table: NAME -->`` and ``<!-- end -->``. Where a row
is missing, "not measured" stands. Merged rows replace those of the same device, subject, case and
type; rows of another card stay.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import attention_pool, tokenizer
from benchmarks.parts.adamw import demo_report
from benchmarks.parts.adamw import report as adamw_report
from benchmarks.parts.common.harness import Row
from benchmarks.parts.common.rows import RESULTS, read_rows
from benchmarks.parts.convergence import report as convergence_report
from benchmarks.parts.data import report as data_report
from benchmarks.parts.loss import report as loss_report
from benchmarks.parts.memory import report as memory_report
from benchmarks.parts.report.merge import merge, read_folder
from benchmarks.parts.report.summary import summary
from benchmarks.parts.step import report as step_report
from benchmarks.parts.tables import headline
from benchmarks.parts.tables.documents import documents, render
from benchmarks.parts.text import report as text_report

PLOTS: dict[str, Callable[[Sequence[Row], Path], Path]] = {
    "data_throughput": data_report.plot,
    "batch_memory": memory_report.plot,
    "adamw": adamw_report.plot,
    "adamw_demo": demo_report.plot,
    "attention_pool": attention_pool.plot,
    "convergence": convergence_report.plot,
    "loss_throughput": loss_report.plot,
    "step_throughput": step_report.plot,
    "text_tower": text_report.plot,
    "tokenizer": tokenizer.plot,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Write or check the tables, draw the plots."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--plots", action="store_true", help="draw the benchmarks' plots again")
    parser.add_argument("--rows", type=Path, metavar="FOLDER", help="of a run of the suite")
    parser.add_argument("--merge", action="store_true", help="take the rows of --rows over")
    options = parser.parse_args(argv)
    if options.merge and options.rows is None:
        raise SystemExit("--merge: --rows names the folder of a run of the suite")
    if options.rows is not None:
        records = read_folder(options.rows)
        print(summary(records))
        if not options.merge:
            return
        for line in merge(records, RESULTS):
            print(line)
    stale = []
    for path in documents():
        before = path.read_text()
        after = render(before)
        if before != after:
            stale.append(str(path))
            if not options.check:
                path.write_text(after)
    if options.check:
        if stale:
            raise SystemExit(f"not what the rows say: {', '.join(stale)}")
        return
    for path in stale:
        print(f"tables: {path}")
    print(f"plot: {headline.plot(RESULTS / 'headline.png')}")
    for subject, draw in PLOTS.items() if options.plots else []:
        print(f"plot: {draw(read_rows(subject), RESULTS / f'{subject}.png')}")


if __name__ == "__main__":
    main()
