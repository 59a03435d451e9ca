"""The linear probe against the same search with scikit-learn's ``LogisticRegression``.

Whole probes are timed: the search for lambda on validation rows, the fit on train and validation
rows, the accuracy on test rows. scikit-learn fits one lambda after the other with its L-BFGS, at
most 1,000 iterations, on the same float32 features. Both stop at a gradient of 1e-4. No time is
printed unless both are as accurate within 0.1 point with one lambda, both searches end as high, and
all of our fits converged.

    python benchmarks/probe.py
    python benchmarks/probe.py --rows 50000 --dim 1024 --runs 1

Rows go to ``benchmarks/results/probe.jsonl`` under the default options or with --save; with others,
to where --json says.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from benchmarks.parts.common.options import add_run_options, new_parser, parse
from benchmarks.parts.common.rows import RowFile
from benchmarks.parts.common.schema import device_name
from benchmarks.parts.common.text import align
from benchmarks.parts.probe.measure import measure_both
from benchmarks.parts.probe.problem import make_problem

SUBJECT = "probe"
DEFAULTS = {
    "cpu": {"rows": 5000, "dim": 256, "classes": [10, 100], "runs": 3, "threads": 1},
    "cuda": {"rows": 50000, "dim": 1024, "classes": [10, 100], "runs": 1, "threads": 8},
}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser(__doc__, DEFAULTS)
    parser.add_argument("--rows", type=int, help="of the train split")
    parser.add_argument("--dim", type=int, help="features per row")
    parser.add_argument("--classes", type=int, nargs="+", help="one case each")
    parser.add_argument("--threads", type=int, help="of the CPU, for both")
    add_run_options(parser, DEFAULTS, save="write to results/ in any case")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every case, print and write the rows."""
    from threadpoolctl import threadpool_limits

    options = parse(build_parser(), argv, DEFAULTS)
    device = torch.device(options.device)
    rows = RowFile(SUBJECT, options, lambda row: row["case"])
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        for classes in options.classes:
            problem = make_problem(options.rows, options.dim, classes, seed=0)
            case = f"{options.rows:,} x {options.dim:,}, {classes} classes"
            with threadpool_limits(options.threads):
                measured = measure_both(problem, device, options.runs)
            rows.add([{"case": case, **row} for row in measured])
    finally:
        torch.set_num_threads(before)
    print(device_name(rows.rows[0]))
    lines = [["case", "", "seconds", "clock", "accuracy", "lambda", "not converged", "x faster"]]
    for row in rows.rows:
        times = f"{row['ratio_to_clipfast']:.1f}" if "ratio_to_clipfast" in row else ""
        late = f"{row['fits_not_converged']} of {row['fits']}"
        told = [f"{row['median_ms'] / 1e3:.2f}", row["clock"], f"{row['accuracy']:.2%}"]
        lines.append([row["case"], row["name"], *told, f"{row['lambda']:.3g}", late, times])
    print(align(lines))
    rows.finish()


if __name__ == "__main__":
    main()
