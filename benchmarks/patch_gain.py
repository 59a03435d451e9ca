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
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import peers
from benchmarks.parts.common.harness import Row
from benchmarks.parts.common.options import new_parser, parse
from benchmarks.parts.common.rows import read_file, write_rows
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
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    return parser


def run_version(options: argparse.Namespace, checkout: Path | None) -> list[Row]:
    """Measure one version of OpenCLIP in a process of its own.

    Args:
        options: Of the command line.
        checkout: The folder of a checkout; None is the version that is installed.

    Returns:
        The rows, not yet stamped.
    """
    environment = {**os.environ, peers.CHECKOUT: str(checkout.resolve()) if checkout else ""}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        command = [sys.executable, "-m", f"benchmarks.{SUBJECT}", "--one", "--json", str(path)]
        command += ["--models", *options.models, "--runs", str(options.runs)]
        command += ["--batch-sizes", *map(str, options.batch_sizes), "--device", options.device]
        subprocess.run(command, check=True, env=environment, cwd=Path(__file__).parents[1])
        return read_file(path)


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

        rows = measure_version(options)
        options.json.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return
    versions = [None, *([Path(options.checkout)] if options.checkout else [])]
    rows = [row for checkout in versions for row in run_version(options, checkout)]
    print(table(rows))
    if not options.checkout:
        print(f"one version only: --checkout, or {peers.CHECKOUT}, names another")
    path = options.json
    if path is not None:
        write_rows(SUBJECT, rows, path=path)
    elif options.is_default or options.save:
        path = write_rows(
            SUBJECT, rows, retain=lambda row: not row["device"].startswith(options.device)
        )
    print(f"rows: {path or 'not written; --json PATH writes them'}")


if __name__ == "__main__":
    main()
