"""Proof that half-precision statistics and stochastically rounded weights train like full ones.

    python benchmarks/adamw_proof.py                 error, late and rounding: minutes
    python benchmarks/adamw_proof.py error           updates against float64 Adam's, 3,000 steps
    python benchmarks/adamw_proof.py replay          the same on gradients recorded from the demo
    python benchmarks/adamw_proof.py late            small updates of half-precision weights
    python benchmarks/adamw_proof.py rounding        the mean of 100,000 draws of one value
    python benchmarks/adamw_proof.py demo --seeds 5  the demo itself, seeds in pairs: an hour

Every part has negative controls, which must fail the test that ours pass. Rows go to
``benchmarks/results/adamw_proof.jsonl`` or to where --json says, part by part, those of ``demo`` to
``adamw_demo.jsonl`` run by run, so that an interrupted demo goes on. The program ends with status 1
where a claim does not hold.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.parts.adamw import demo, demo_report, error, gradients, rounding, weights
from benchmarks.parts.common import rows as files
from benchmarks.parts.common.harness import Row

SUBJECT = "adamw_proof"
PARTS = ("error", "replay", "late", "rounding", "demo")
QUICK_PARTS = ("error", "late", "rounding")
# A late rate of the demo, relative to its peak: reached at 96% of the cosine.
LATE_RATE = 4e-3


def run_error(options: argparse.Namespace) -> tuple[list[Row], list[str]]:
    """Part "error"."""
    rows = []
    cases = [(kind, beta2) for kind in gradients.KINDS for beta2 in error.BETA2]
    with tqdm(total=len(cases) * options.steps, unit=" steps", leave=False) as bar:
        for kind, beta2 in cases:
            bar.set_description(f"{kind}, beta2 {beta2}")
            stream = ([grad] for grad in gradients.gradients(kind, options.elements))
            rows += error.measure(kind, stream, options.steps, beta2, after_step=bar.update)
    print(
        f"\nUpdates against float64 Adam's: {options.steps:,} steps, {options.elements:,} weights"
    )
    print(error.table(rows))
    print(error.WHY_UNJUDGED)
    return rows, error.complaints(rows)


def run_replay(options: argparse.Namespace) -> tuple[list[Row], list[str]]:
    """Part "replay"."""
    config = gradients.demo_config()
    statistics, moved = [], []
    with tempfile.TemporaryDirectory() as folder:
        with tqdm(total=options.trace_steps, desc="recording", unit=" steps", leave=False) as bar:

            def tell(loss: float) -> None:
                bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
                bar.update()

            trace = gradients.record(Path(folder), options.trace_steps, options.trace_batch, tell)
        steps = trace.steps * options.cycles
        elements = sum(weight.numel() for weight in trace.weights)
        cases = [(flat, beta2) for flat in (False, True) for beta2 in error.BETA2]
        with tqdm(total=5 * steps, desc="replaying", unit=" steps", leave=False) as bar:
            for flat, beta2 in cases:
                name, form = ("flat trace", _flat) if flat else ("trace", list)
                stream = map(form, (g for _ in range(options.cycles) for g in trace.gradients()))
                statistics += error.measure(name, stream, steps, beta2, after_step=bar.update)
            moved += weights.replay(
                trace,
                LATE_RATE * config.optimizer.lr,
                config.optimizer.weight_decay,
                config.optimizer.beta2,
                options.cycles,
                bar.update,
            )
    print(
        f"\nThe demo's gradients, {trace.steps} steps x {options.cycles}, {len(trace.names)} "
        f"tensors of both towers, {elements:,} weights"
    )
    print("(flat: side by side in one tensor, as ZeRO hands them over)")
    print(error.table(statistics))
    print(f"\nThe same gradients at {LATE_RATE} of the peak rate: movement along float64 Adam's")
    print(weights.table(moved))
    wrong = error.complaints(statistics, controls_fail=steps >= 300)
    return statistics + moved, wrong + weights.complaints(moved)


def _flat(grads: Sequence[Tensor]) -> list[Tensor]:
    return [torch.cat([grad.flatten() for grad in grads])]


def run_late(options: argparse.Namespace) -> tuple[list[Row], list[str]]:
    """Part "late"."""
    rows, curves = weights.late_phase(options.elements, options.late_steps)
    print(f"\nA noisy quadratic, {options.late_steps} steps: movement along that of fp32 weights")
    print(weights.table(rows))
    if options.save and options.json is None:
        print(f"plot: {weights.plot(curves, files.RESULTS / 'adamw_late.png')}")
    return rows, weights.complaints(rows)


def run_rounding(options: argparse.Namespace) -> tuple[list[Row], list[str]]:
    """Part "rounding"."""
    rows = rounding.measure(options.draws)
    print(f"\nThe mean of {options.draws:,} draws of one value")
    summaries = rounding.summary(rows)
    print(rounding.table(summaries))
    control = rounding.measure(options.draws, rounding="nearest")
    biased = {row["name"] for row in control if not row["passed"]}
    print(f"control, to nearest: biased in {len(biased)} of {len(rounding.FORMATS)} formats")
    wrong = [
        f"{row['name']}: {row['value']!r} is off by {row['bias_ulp']:.4f} ulp, z {row['z']:.1f}"
        for row in rows
        if not row["passed"]
    ]
    wrong += [
        f"{form.name}: rounding to nearest passes the test of unbiased rounding"
        for form in rounding.FORMATS
        if form.name not in biased
    ]
    return summaries + rounding.summary(control), wrong


def run_demo(options: argparse.Namespace) -> list[str]:
    """Part "demo"."""
    rows = demo.run(
        range(options.seeds), options.runs, max_steps=options.max_steps, save=options.save
    )
    print("\nThe demo, seeds in pairs with fp32 statistics and weights")
    print(demo_report.table(rows))
    if options.save:
        kept = files.read_rows(demo.SUBJECT)
        picture = files.RESULTS / f"{demo.SUBJECT}.png"
        print(f"plot: {demo_report.plot(kept, picture)}")
    return demo_report.complaints(rows)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"any of {', '.join(PARTS)}", default=QUICK_PARTS
    )
    parser.add_argument("--steps", type=int, default=3000, help="of error")
    parser.add_argument("--elements", type=int, default=1 << 16, help="weights of error and late")
    parser.add_argument("--trace-steps", type=int, default=60, help="of the demo, recorded")
    parser.add_argument("--trace-batch", type=int, default=256, help="pairs in a recorded step")
    parser.add_argument("--cycles", type=int, default=5, help="times the trace is replayed")
    parser.add_argument("--late-steps", type=int, default=300, help="of late's cosine")
    parser.add_argument("--draws", type=int, default=100_000, help="of each value of rounding")
    parser.add_argument("--seeds", type=int, default=5, help="of demo, from 0")
    parser.add_argument(
        "--runs", nargs="+", choices=demo.RUNS, default=list(demo.RUNS), help="of demo"
    )
    parser.add_argument("--max-steps", type=int, help="of demo, for a look; nothing is kept")
    parser.add_argument(
        "--no-save", dest="save", action="store_false", help="print, and write nothing"
    )
    parser.add_argument(
        "--json", type=Path, help="file for the rows, one per line, instead; not for demo's"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the parts asked for, print their tables, write their rows."""
    options = build_parser().parse_args(argv)
    if unknown := set(options.parts) - set(PARTS):
        raise SystemExit(f"no such part: {', '.join(sorted(unknown))}; there are {PARTS}")
    options.save &= options.max_steps is None
    # All cases belong to a part, and only parts that were asked for are measured anew.
    options.is_default = False
    kept = files.RowFile(SUBJECT, options, lambda row: row["part"])
    wrong: list[str] = []
    for part in options.parts:
        if part == "demo":
            wrong += run_demo(options)
            continue
        run = {
            "error": run_error,
            "replay": run_replay,
            "late": run_late,
            "rounding": run_rounding,
        }[part]
        rows, told = run(options)
        wrong += told
        kept.add([{"part": part, "device": "cpu", **row} for row in rows])
    kept.finish()
    if wrong:
        raise SystemExit("does not hold:\n  " + "\n  ".join(wrong))


if __name__ == "__main__":
    main()
