"""The demo's model trained by clipfast and by OpenCLIP's own train script: is it the same model?

Both train on the same shards, with the same architecture, optimizer, schedule, batch and steps,
from several seeds. Each draws its own weights. Both files of weights are measured by the same
evaluation, and the first seed's by OpenCLIP's own code too. What cannot be made equal stands in
benchmarks/parts/convergence/settings.py, the criterion in compare.py.

    python benchmarks/convergence.py                what has no row yet; the table, the plot
    python benchmarks/convergence.py --report       the table and the plot alone
    python benchmarks/convergence.py --quiet --threads 2 --seeds 0 \\
        --only clipfast openclip openclip-77        the time on the clock, where nothing else runs

OpenCLIP's script needs packages that nothing else here does, in versions of its own; without them
the command says how to get them. ``--packages PACKAGES`` names their folder.

Rows are written as they come, and a training that has one is not run again. Under other work a
training's seconds say little; its processor's seconds do.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.parts.common.harness import Row
from benchmarks.parts.convergence import experiment, report
from benchmarks.parts.convergence.compare import groups_of
from benchmarks.parts.convergence.settings import CONTENDERS, Settings

SEEDS = (0, 1, 2, 3, 4)
DEFAULT = ("clipfast", "openclip")
# A third of the demo, its cosine included. --epochs 25 is the whole of it.
EPOCHS = 8


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument(
        "--only",
        nargs="+",
        default=DEFAULT,
        choices=CONTENDERS,
        metavar="KEY",
        help=f"of {', '.join(CONTENDERS)}; not given: {', '.join(DEFAULT)}",
    )
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of 7 steps")
    parser.add_argument("--threads", type=int, default=1, help="of either program")
    parser.add_argument("--quiet", action="store_true", help="nothing else runs: seconds count")
    parser.add_argument("--folder", type=Path, help="for shards and weights while it runs")
    parser.add_argument("--packages", type=Path, help="of OpenCLIP's script, see above")
    parser.add_argument(
        "--json",
        type=Path,
        default=experiment.ROWS,
        help="file of the rows; those that are there are not measured again",
    )
    parser.add_argument("--plot", type=Path, help="file for the plot; not given: beside the rows")
    parser.add_argument("--report", action="store_true", help="train nothing")
    return parser


def trainings(options: argparse.Namespace) -> list[Settings]:
    """What is asked for, contenders in alternation."""
    return [
        Settings(key, seed, options.epochs, options.threads)
        for seed in options.seeds
        for key in options.only
    ]


def _train(options: argparse.Namespace) -> list[Row]:
    with tempfile.TemporaryDirectory() as temporary:
        return experiment.run(
            trainings(options),
            (options.folder or Path(temporary)).resolve(),
            quiet=options.quiet,
            packages=options.packages and options.packages.resolve(),
            path=options.json,
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Train, print, draw; status 1 where figures differ."""
    options = build_parser().parse_args(argv)
    if options.report:
        rows = experiment.read(options.json)
    else:
        try:
            rows = _train(options)
        except ImportError as error:
            raise SystemExit(str(error)) from None
    print(report.table(rows))
    if groups_of(rows):
        print(f"plot: {report.plot(rows, options.plot or options.json.with_suffix('.png'))}")
    if found := report.complaints(rows):
        raise SystemExit("\n".join(found))


if __name__ == "__main__":
    main()
