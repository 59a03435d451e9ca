"""Proves and measures everything on this machine, the most worthy first, until the time is used.

First what the machine is: rates of products and of a copy. Then the operators' tests of its device.
Then the benchmarks, each case checked before it is timed. Each part runs in a process of its own: a
hang, a crash or a lack of memory costs that part alone, and is named. A part that would not fit
into the time that is left is passed over for one that does.

    python benchmarks/suite.py                      8 minutes on this machine's device
    python -m benchmarks.suite --minutes 60 --open-clip ../open_clip
    python -m benchmarks.suite --resume             goes on where the newest run stopped
    python -m benchmarks.suite --only 'loss*' step-vit
    python -m benchmarks.suite --list               the parts, and what each takes
    python -m benchmarks.suite --predict            what a GPU is expected to take, by count

Rows are written as they come, all in one form (``parts/common/schema.py``), under ``rows`` in the
folder of the run; logs beside them. ``python -m benchmarks.report --rows FOLDER`` shows them.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from benchmarks.parts.common.schema import device_name
from benchmarks.parts.suite import catalogue
from benchmarks.parts.suite.journal import Journal
from benchmarks.parts.suite.pace import slowness
from benchmarks.parts.suite.part import Part
from benchmarks.parts.suite.run import Budget, run_parts, table
from benchmarks.peers import CHECKOUT

RUNS = Path("build") / "suite"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog=__doc__.split("\n\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--minutes", type=float, default=8, help="time for all parts; 0 is no limit"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="parts, or patterns of names")
    parser.add_argument("--resume", action="store_true", help="leave out what is done")
    parser.add_argument("--out", type=Path, help=f"folder of the run; a new one in {RUNS} if none")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="CUDA where there is one")
    parser.add_argument(
        "--open-clip",
        type=Path,
        default=os.environ.get(CHECKOUT),
        metavar="PATH",
        help=f"a checkout of OpenCLIP's main to compare with too; {CHECKOUT} if not given",
    )
    parser.add_argument("--list", action="store_true", help="run nothing")
    parser.add_argument(
        "--predict", action="store_true", help="run nothing; with --out write predictions.jsonl"
    )
    return parser


def choose(parts: Sequence[Part], patterns: Sequence[str] | None) -> list[Part]:
    """The parts whose names match one of the patterns; all where there is none.

    Raises:
        SystemExit: A pattern matches nothing; says what there is.
    """
    if not patterns:
        return list(parts)
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(part.name, pattern) for part in parts):
            names = ", ".join(part.name for part in parts)
            raise SystemExit(f"--only {pattern}: no such part; there are {names}")
    return [part for part in parts if any(fnmatch.fnmatchcase(part.name, one) for one in patterns)]


def folder_of(options: argparse.Namespace) -> Path:
    """The folder of the run: the given one, the newest with --resume, or a new one.

    Raises:
        SystemExit: There is none to resume.
    """
    if options.out is not None:
        return Path(options.out).resolve()
    if options.resume:
        found = sorted(path for path in RUNS.glob("*") if (path / "suite.json").exists())
        if not found:
            raise SystemExit(f"--resume: no run in {RUNS}; --out names its folder")
        return found[-1].resolve()
    return (RUNS / time.strftime("%Y%m%d-%H%M%S")).resolve()


def main(argv: Sequence[str] | None = None) -> None:
    """Run the parts, print the table; status 1 where a part failed."""
    budget = Budget(None)
    options = build_parser().parse_args(argv)
    budget.seconds = 60 * options.minutes if options.minutes else None
    if options.predict:
        from benchmarks.parts.predict.table import write_predictions

        write_predictions(options.out)
        return
    if options.open_clip is not None and not (Path(options.open_clip) / "src/open_clip").is_dir():
        raise SystemExit(
            f"--open-clip {options.open_clip}: expected a checkout, with src/open_clip"
        )
    import torch

    from clipfast.env import stamp

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    checkout = Path(options.open_clip).resolve() if options.open_clip else None
    parts = choose(catalogue.parts(device, checkout), options.only)
    if options.list:
        for part in parts:
            print(f"{part.name:16} {part.seconds:4.0f} s  {part.what}")
        return
    journal = Journal(folder_of(options))
    environment = stamp()
    facts = {"device": device, "environment": environment}
    facts["device_name"] = device_name(facts)
    journal.begin(facts, resume=options.resume)
    changed = " with changes" if str(environment["commit"]).endswith("+changes") else ""
    print(f"{facts['device_name']}, torch {torch.__version__}, {len(parts)} parts")
    print(f"commit {str(environment['commit'])[:7]}{changed}; rows and logs: {journal.folder}")
    # An end that is asked for is told of: the part is ended, and what it gave is kept.
    signal.signal(signal.SIGTERM, _interrupt)
    pace = slowness(device, journal.rows(catalogue.CEILINGS))
    try:
        outcomes = run_parts(parts, journal, budget, slowness=pace, say=_say)
    except KeyboardInterrupt:
        raise SystemExit(f"interrupted; go on with --resume --out {journal.folder}") from None
    print(f"\n{table(parts, outcomes)}\n")
    failed = [outcome.name for outcome in outcomes if outcome.is_failure]
    print(f"{budget.used:.0f} s; python -m benchmarks.report --rows {journal.folder}")
    if failed:
        print(f"failed: {', '.join(failed)}; what each printed is in {journal.folder / 'logs'}")
    sys.exit(bool(failed))


def _say(line: str) -> None:
    print(line, flush=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
