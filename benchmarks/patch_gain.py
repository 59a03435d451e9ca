"""What ``clipfast.patch_open_clip`` gains in OpenCLIP's own training step, by version of OpenCLIP.

A step is OpenCLIP's: its model, its ``ClipLoss``, the backward, ``torch.optim.AdamW``, the clamp of
the log-scale. Plain and patched model share their weights and take turns, pair by pair, in one
process. Before they are timed, loss and gradients of the two are compared on the same pairs.

Versions: the one that is installed, and a checkout of another, in a process each. Settings:

    77 tokens          every caption padded to the context length
    variable_text      cut to the longest caption of the batch (OpenCLIP 4)
    length bucketing   four batches whose captions were sorted by length, each cut (OpenCLIP 4);
                       times are those of one of the four

    python benchmarks/patch_gain.py                             the installed one
    python benchmarks/patch_gain.py --checkout ../open_clip     and that one
    python benchmarks/patch_gain.py --batch-sizes 16 8 --runs 3 --checkout ../open_clip

Beside the time on the clock stands the processors' (user and system, all threads), which other work
on the machine changes less.

Rows go to ``benchmarks/results/patch_gain.jsonl`` under the default options or with --save; with
others, to where --json says.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import peers
from benchmarks.parts.common.contest import Absence, NotMeasured, reason_of, require_ours
from benchmarks.parts.common.harness import Row
from benchmarks.parts.common.options import new_parser, parse
from benchmarks.parts.common.rows import RowFile
from benchmarks.parts.common.text import align, digits, times

SUBJECT = "patch_gain"
DEFAULTS = {
    "cpu": {"models": ["ViT-B/32", "RN50"], "batch_sizes": [32, 16], "runs": 5},
    "cuda": {"models": ["ViT-B/32", "RN50"], "batch_sizes": [512, 256], "runs": 10},
}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser(__doc__, DEFAULTS)
    parser.add_argument("--models", nargs="+", metavar="NAME", help="of clipfast.list_models()")
    parser.add_argument("--batch-sizes", type=int, nargs="+", help="one per model")
    parser.add_argument("--runs", type=int, help="timed pairs of steps")
    parser.add_argument("--device", choices=DEFAULTS, help="CUDA where there is one, else the CPU")
    parser.add_argument(
        "--checkout",
        type=Path,
        default=os.environ.get(peers.CHECKOUT),
        help=f"folder of another OpenCLIP; {peers.CHECKOUT} if not given",
    )
    parser.add_argument("--save", action="store_true", help="write to results/")
    parser.add_argument("--json", type=Path, help="file for the rows, one per line")
    parser.add_argument("--one", type=int, metavar="DESCRIPTOR", help=argparse.SUPPRESS)
    return parser


def run_version(options: argparse.Namespace, checkout: Path | None) -> Iterator[list[Row]]:
    """Measure one version of OpenCLIP in a process of its own.

    Args:
        options: Of the command line.
        checkout: The folder of a checkout; None is the version that is installed.

    Yields:
        The rows of a case as they come, not yet stamped.

    Raises:
        NotMeasured: The process failed; what it said is on the screen.
    """
    environment = {**os.environ, peers.CHECKOUT: str(checkout.resolve()) if checkout else ""}
    reading, writing = os.pipe()
    command = [sys.executable, "-m", f"benchmarks.{SUBJECT}", "--one", str(writing)]
    command += ["--models", *options.models, "--runs", str(options.runs)]
    command += ["--batch-sizes", *map(str, options.batch_sizes), "--device", options.device]
    folder = Path(__file__).parents[1]
    process = subprocess.Popen(command, env=environment, cwd=folder, pass_fds=[writing])
    os.close(writing)
    try:
        with open(reading) as lines:
            yield from map(json.loads, lines)
        if code := process.wait():
            raise NotMeasured(f"its process ended with {code}")
    finally:
        process.kill()
        process.wait()


def table(rows: Sequence[Row]) -> str:
    """One line per version, model and setting."""
    lines = [
        ["", "model", "captions", "plain ms", "patched", "faster", "CPU s", "patched", "faster"]
    ]
    lines[0] += ["loss", "image", "text"]
    for plain, patched in zip(rows[::2], rows[1::2], strict=True):
        lines.append(
            [
                plain["name"],
                plain["model"],
                plain["setting"],
                *(digits(row["median_ms"]) for row in (plain, patched)),
                times(plain["ratio_to_patched"]),
                *(digits(row["cpu_ms"], 1e3) for row in (plain, patched)),
                times(plain["cpu_ratio_to_patched"]),
                *(f"{patched[key]:.0e}" for key in ("error_loss", "error_image_grad")),
                f"{patched['error_text_grad']:.0e}",
            ]
        )
    return align(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    options = parse(build_parser(), argv, DEFAULTS)
    if len(options.batch_sizes) != len(options.models):
        raise SystemExit("--batch-sizes: give one per model")
    if options.one:
        from benchmarks.parts.patch.measure import measure_version

        with open(options.one, "w") as file:
            for new in measure_version(options):
                print(json.dumps(new), file=file, flush=True)
        return
    rows, absent = RowFile(SUBJECT, options, case_of), []
    for checkout in [None, *([Path(options.checkout)] if options.checkout else [])]:
        try:
            for new in run_version(options, checkout):
                rows.add(new)
        except NotMeasured as error:
            absent.append(Absence(f"OpenCLIP, {checkout or 'installed'}", reason_of(error), True))
    if rows.rows:
        print(table(rows.rows))
    for absence in absent:
        print(f"{absence.name}: {absence.reason}")
    if not options.checkout:
        print(f"one version only: --checkout, or {peers.CHECKOUT}, names another")
    rows.finish()
    require_ours(absent)


def case_of(row: Row) -> tuple:
    """What rows of one case have in common, and no others."""
    return tuple(row[key] for key in ("open_clip_version", "model", "batch", "setting"))


if __name__ == "__main__":
    main()
