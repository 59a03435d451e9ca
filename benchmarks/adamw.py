"""Time, memory and traffic of ``clipfast.FusedAdamW`` against other AdamWs.

Timed: one ``step()`` on all parameters, gradients present. The parameters are those of the paper's
largest ResNet and largest vision transformer, in shape and number, and one flat slice, as ZeRO
hands out. 400 small tensors show what one costs the host. Gradients are normal, each tensor's scale
log-normal.

An optimizer's step does little arithmetic: memory bounds it. Two large ``torch`` operations are
timed in alternation with the contenders: a copy, and a product in place. "of copy" and "of in
place" are a contender's rate by theirs, with the bytes counted from its types. The floor is by the
faster of the two. A CPU's copy reads its target's lines before it overwrites them, unless it
streams past the caches, and these reads are not counted. An optimizer's step overwrites only what
it has read, so it can pass 100% of a copy.

On the flat slice and on small tensors all contenders alternate. On models' lists each alternates
with torch's fused step alone, since the states of all do not fit. foreach makes copies of
everything and alternates with nobody: its "faster" goes by its copies.

Each contender is checked first (``parts/adamw/check.py``): it is AdamW in float64, and ours has the
reference's bits. What fails has no figures.

    python benchmarks/adamw.py                            what this machine's default is
    python benchmarks/adamw.py --lists flat --runs 20
    python benchmarks/adamw.py --quick                    seconds, for a look; nothing is kept

Rows go to ``benchmarks/results/adamw.jsonl`` and the plot beside it, under the default options or
with --save; with others, to where --json and --plot say.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from benchmarks.parts.adamw import report
from benchmarks.parts.adamw.contenders import CONTENDERS
from benchmarks.parts.adamw.measure import check_all, measure_list
from benchmarks.parts.adamw.problem import FLAT, LISTS
from benchmarks.parts.common.contest import require_ours
from benchmarks.parts.common.options import add_run_options, new_parser, parse
from benchmarks.parts.common.rows import RowFile

SUBJECT = "adamw"
DEFAULTS = {"cpu": {"runs": 5}, "cuda": {"runs": 20}}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser(__doc__, DEFAULTS)
    parser.add_argument("--lists", nargs="+", choices=LISTS, default=list(LISTS))
    parser.add_argument("--elements", type=int, default=1 << 26, help="of the flat slice")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    add_run_options(parser, DEFAULTS, save="write to results/ in any case")
    parser.add_argument(
        "--quick", action="store_true", help="a small flat slice, and no peer that compiles first"
    )
    return parser


def read_options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options; ``--quick`` overrides what takes time."""
    options = parse(build_parser(), argv, DEFAULTS)
    if options.quick:
        options.lists, options.elements, options.runs = [FLAT], 1 << 20, 3
        options.contenders = [key for key in options.contenders if key != "deepspeed-cpu"]
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Check, measure, print tables, and save what was measured."""
    options = read_options(argv)
    device = torch.device(options.device)
    checks, absent = check_all(options.contenders, device)
    rows = RowFile(SUBJECT, options, report.case_of)
    for name in options.lists if checks else []:
        new, missing = measure_list(name, options.elements, device, options.runs, checks)
        rows.add(new)
        print(report.table(new))
        absent += missing
    for absence in absent:
        print(f"{absence.name}: {absence.reason}")
    rows.finish(report.plot)
    require_ours(absent)


if __name__ == "__main__":
    main()
