"""Time and memory of ``clipfast.clip_loss`` against its peers and against bare matrix products.

Timed: forward and backward, from un-normalised features to their gradients and the log-scale's. All
contenders see the same random pairs, at a logit scale of 100, and each counts what it needs: a peer
whose loss takes normalised features counts ``F.normalize`` and its backward. Under half precision
OpenCLIP runs under autocast, as in its training loop; float16 has its loss scaled, for everybody.

Before it is timed, each contender's loss and gradients are compared with float64 on the very
features that are timed; what is off by more than its arithmetic explains gets no row. Above 8,192
pairs the features' gradients are compared on 256 of their rows, each exact; the loss and the
log-scale's gradient, which sum over all logits, always in full.

The floor is what the matrix products alone take, measured just before in the same run: 6BGD FLOP
where the logits are kept, 8BGD where they are recomputed (B pairs on a rank, G in all, D wide).

    python benchmarks/loss_throughput.py                          what this machine's default is
    python benchmarks/loss_throughput.py --batch-sizes 524288     a batch no G x G fits
    python benchmarks/loss_throughput.py --ranks 2                sharded over processes

Rows go to ``benchmarks/results/loss_throughput.jsonl`` and the plot beside it, under the default
options only; with others, to where --json and --plot say.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.parts.common import harness
from benchmarks.parts.loss import report as loss_report
from benchmarks.parts.loss.measure import Absence, Plan, measure_case, measure_on_ranks
from benchmarks.parts.loss.peers import KEPT, PEERS
from benchmarks.parts.loss.problem import LOGIT_SCALE, Case, compute_truth, make_features

SUBJECT = "loss_throughput"
IMPLS = ("auto", "all", "reference", "plain", "torch", "cpu", "cuda", "triton")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
DEFAULTS = {
    "cpu": {
        "batch_sizes": [1024, 4096, 8192],
        "dims": [512],
        "dtypes": ["float32", "bfloat16"],
    },
    "cuda": {
        "batch_sizes": [4096, 32768],
        "dims": [512, 1024],
        "dtypes": ["float16", "bfloat16"],
    },
}
RUNS = {"cpu": 10, "cuda": 20}
LARGE = 65536  # pairs above which a run takes seconds: three of them, and one to warm up


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="without options: " + "; ".join(f"{k}: {v}" for k, v in DEFAULTS.items()),
    )
    parser.add_argument("--batch-sizes", type=int, nargs="+", help="pairs on all ranks together")
    parser.add_argument("--dims", type=int, nargs="+", help="widths of the embedding")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, help="what the towers give")
    parser.add_argument(
        "--impl", nargs="+", choices=IMPLS, default=["auto"], help="implementations of clipfast"
    )
    parser.add_argument(
        "--keep", nargs="+", choices=KEPT, default=list(KEPT), help="forms of clipfast"
    )
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--ranks", type=int, default=1, help="processes that share the batch")
    parser.add_argument("--runs", type=int, help="timed runs of each contender")
    parser.add_argument("--device", choices=DEFAULTS, help="CUDA where there is one, else the CPU")
    parser.add_argument("--json", type=Path, help="file for the rows, one a line")
    parser.add_argument("--plot", type=Path, help="file for the plot")
    return parser


def resolve(arguments: argparse.Namespace) -> argparse.Namespace:
    """The arguments with this machine's defaults in place of what was not given."""
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and torch.cuda.device_count() < arguments.ranks:
        raise SystemExit(
            f"--ranks {arguments.ranks} takes as many GPUs, and {torch.cuda.device_count()} are "
            "here; --device cpu measures the ranks on the CPU"
        )
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    return argparse.Namespace(
        **{"runs": None, "json": None, "plot": None, **DEFAULTS[device], **given, "device": device}
    )


def run_cases(
    options: argparse.Namespace,
) -> tuple[list[harness.Row], list[tuple[Case, Absence]]]:
    """Measure every size, print its table as it is done."""
    cases = [
        Case(batch, dim, DTYPES[dtype], torch.device(options.device), world_size=options.ranks)
        for dim in options.dims
        for dtype in options.dtypes
        for batch in options.batch_sizes
    ]
    rows, absent = [], []
    for number, case in enumerate(cases, 1):
        is_large = case.batch > LARGE
        plan = Plan(
            impls=tuple(options.impl),
            kept=tuple(options.keep),
            peers=tuple(options.peers),
            runs=options.runs or (3 if is_large else RUNS[options.device]),
            warmup=1 if is_large else 3,
        )
        title = f"G {case.batch:,}, D {case.dim:,}, {case.dtype_name}, {case.device.type}"
        title += f", {case.world_size} ranks" if case.world_size > 1 else ""
        with tqdm(
            desc=f"case {number}/{len(cases)}: {title}",
            total=plan.total_runs(case) if case.world_size == 1 else None,
            unit=" runs",
            leave=False,
        ) as bar:
            if case.world_size > 1:
                new, missing = measure_on_ranks(case, plan)
            else:
                truth = compute_truth(make_features(case))
                new, missing = measure_case(case, plan, truth, lambda bar=bar: bar.update(1))
        print(f"\n{title}, logit scale {LOGIT_SCALE:g}, loss {new[0]['loss']:.3g}")
        print(loss_report.table(new))
        for absence in missing:
            print(f"{absence.name}: {absence.reason}")
        rows += new
        absent += [(case, absence) for absence in missing]
    return rows, absent


def save(rows: list[harness.Row], options: argparse.Namespace, is_default: bool) -> None:
    """Write and draw the rows where the options say, and say where that is."""
    path = options.json
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The harness names files by subject, with an ending of its own.
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            harness.write_rows(SUBJECT, rows, directory=Path(folder)).replace(path)
    elif is_default:
        kind = rows[0]["device"].split(":")[0]
        path = harness.write_rows(
            SUBJECT, rows, retain=lambda row: not row["device"].startswith(kind)
        )
    print(f"\nrows: {path or 'not written; --json PATH writes them'}")

    picture = options.plot or (harness.RESULTS / f"{SUBJECT}.png" if is_default else None)
    if picture is not None:
        if path is not None:
            # From the file, whose rows carry the machine's name, and other devices' rows too.
            rows = [json.loads(line) for line in path.read_text().splitlines()]
        loss_report.plot(rows, picture)
    print(f"plot: {picture or 'not drawn; --plot PATH draws it'}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the cases, print their tables, and save what was measured."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    is_default = vars(arguments) == vars(parser.parse_args([]))
    options = resolve(arguments)
    rows, absent = run_cases(options)
    print(
        "\nMilliseconds; x floor: time by that of the bare matrix products of the same form; x A, "
        "x B: time by\nthat of clipfast's form A, B; MiB: peak above what was there before; then "
        "relative L2 errors against float64."
    )
    if rows:
        save(rows, options, is_default)
    failed = [f"{absence.name} at G {case.batch}" for case, absence in absent if absence.is_ours]
    if failed:
        raise SystemExit(f"clipfast has no figure for: {', '.join(failed)}")


if __name__ == "__main__":
    main()
