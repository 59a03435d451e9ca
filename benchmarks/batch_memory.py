"""Memory of a training step from 1,024 to 32,768 pairs, encoded 128 at a time.

The demo's model takes a step on the embedded sample, whose shards are named so often that an epoch
has a batch; a picture comes again with another crop. Each step runs in a process of its own, whose
largest resident memory the kernel tells. Three forms:

crops   micro-batches, as a run trains: the second pass reads crops that are kept as bytes
files   micro-batches with ``keep_bytes=0``: files are kept, and decoded again for the second pass
whole   the share decoded at once before the first pass, as up to version 0.1

Before anything is measured, a step of 1,024 pairs is held to the loss of the whole batch, computed
in float64, and the three forms to the same bits of loss and weights. Afterwards the growth of the
first two from the second batch to the last is held to what has to grow: features, the loss's
workspace, and what is kept of the images. The program ends with status 1 where it is more.

    python benchmarks/batch_memory.py                    on two quiet cores: see the page of docs
    python benchmarks/batch_memory.py --batches 1024 4096 --forms crops

Rows go to ``benchmarks/results/batch_memory.jsonl`` and the plot beside it, under the default
options or with --save; with others, to where --json and --plot say.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.parts.common.harness import CheckFailed, Row
from benchmarks.parts.common.options import add_run_options, new_parser, parse
from benchmarks.parts.common.rows import RowFile
from benchmarks.parts.memory import report
from benchmarks.parts.memory.cases import FORMS, MODEL, Case, repeated_sample
from benchmarks.parts.memory.program import CHECK, START, TOLERANCE

SUBJECT = "batch_memory"
CHECKED = 1024
# Decoded at once, 32,768 pairs would only tell how many GB that takes.
MOST_WHOLE = 8192
DEFAULTS = {
    "cpu": {"batches": [1024, 4096, 8192, 16384, 32768], "forms": list(FORMS), "runs": 1},
}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser(__doc__, DEFAULTS)
    parser.add_argument("--batches", type=int, nargs="+", help="pairs of a step")
    parser.add_argument("--micro-batch", type=int, default=128, help="pairs encoded at a time")
    parser.add_argument("--forms", nargs="+", choices=FORMS)
    add_run_options(parser, DEFAULTS, save="write to results/, beside the rows of other cases")
    return parser


def cases_of(options: argparse.Namespace) -> list[Case]:
    """The steps to take, the small ones first."""
    return [
        Case(form, batch, options.micro_batch)
        for batch in sorted(options.batches)
        for form in options.forms
        if form != "whole" or batch <= MOST_WHOLE
    ]


def run_program(program: Sequence[str], case: Case, shards: list[str], steps: int) -> Any:
    """What a process of one case printed last.

    Raises:
        CheckFailed: It failed; with the end of what it said.
    """
    given = json.dumps({**dataclasses.asdict(case), "shards": shards, "steps": steps})
    done = subprocess.run(
        [sys.executable, *program, given],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).resolve().parents[1],
    )
    if done.returncode:
        raise CheckFailed(f"{case}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(case: Case, shards: list[str], steps: int, error: float) -> Row:
    """One row, checked by the loss of other forms later on.

    Args:
        case: The step's sizes.
        shards: That hold enough pairs.
        steps: To take.
        error: Of the loss by micro-batches, as the check found it.
    """
    found = run_program(START, case, shards, steps)
    return {
        "name": FORMS[case.form],
        **dataclasses.asdict(case),
        "model": MODEL,
        "dtype": "fp32",
        "device": "cpu",
        "steps": steps,
        "checked": True,
        "error": error,
        "loss": found["losses"][0],
        "peak_extra_bytes": found["peak_bytes"] - found["before_bytes"],
        "resident_bytes": found["peak_bytes"],
        "counted": found["counted"],
        "seconds": found["seconds"],
        "cpu_seconds": found["cpu_seconds"],
    }


def run_cases(options: argparse.Namespace, rows: RowFile) -> list[Row]:
    """Check, then measure every case; write and print each as it is done.

    Raises:
        CheckFailed: A loss is wrong, or differs between forms.
    """
    cases = cases_of(options)
    with tempfile.TemporaryDirectory() as folder, tqdm(total=len(cases) + 1, leave=False) as bar:
        shards = repeated_sample(Path(folder), max(CHECKED, *options.batches))
        bar.set_description("check")
        checked = run_program(CHECK, Case("crops", CHECKED, options.micro_batch), shards, 1)
        bar.update()
        bar.write(
            f"{CHECKED:,} pairs: loss {checked['loss']:.6f} by micro-batches of "
            f"{options.micro_batch}, {checked['expected']:.6f} of the whole batch in float64; the "
            "same bits of loss and weights in all forms"
        )
        measured: list[Row] = []
        for case in cases:
            bar.set_description(f"{case.batch:,} pairs, {case.form}")
            row = measure(case, shards, options.runs, checked["error"])
            for other in measured:
                # Not to the bit: each process chooses the library that multiplies.
                if other["batch"] == case.batch and not math.isclose(
                    other["loss"], row["loss"], rel_tol=TOLERANCE
                ):
                    told = f"{row['loss']}, and {other['loss']} with {other['form']}"
                    raise CheckFailed(f"{case}: the loss is {told}")
            measured.append(row)
            rows.add([row])
            bar.update()
    return measured


def main(argv: Sequence[str] | None = None) -> None:
    """Run the cases, print their table, and save what was measured."""
    options = parse(build_parser(), argv, DEFAULTS)
    rows = RowFile(SUBJECT, options, report.case_of)
    measured = run_cases(options, rows)
    print(report.table(measured))
    rows.finish(report.plot)
    if complaints := report.complaints(measured):
        raise SystemExit("\n".join(complaints))


if __name__ == "__main__":
    main()
