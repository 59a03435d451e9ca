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
options or with --save; with others, to where --json and --plot say.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

import torch
from tqdm import tqdm

from benchmarks.parts.common.contest import Absence, require_ours
from benchmarks.parts.common.options import add_run_options, new_parser, parse
from benchmarks.parts.common.rows import RowFile
from benchmarks.parts.loss import report
from benchmarks.parts.loss.measure import Selection, measure_case
from benchmarks.parts.loss.peers import KEPT, PEERS
from benchmarks.parts.loss.problem import LOGIT_SCALE, Case, compute_truth, make_features
from benchmarks.parts.loss.ranks import measure_on_ranks

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
    """The command line."""
    parser = new_parser(__doc__, DEFAULTS)
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
    add_run_options(parser, DEFAULTS, save="write to results/, beside the rows of other cases")
    return parser


def require_devices(options: argparse.Namespace) -> None:
    """Every rank needs a GPU of its own.

    Raises:
        SystemExit: There are not as many.
    """
    if options.device == "cuda" and torch.cuda.device_count() < options.ranks:
        raise SystemExit(
            f"--ranks {options.ranks} takes as many GPUs, and {torch.cuda.device_count()} are "
            "here; --device cpu measures the ranks on the CPU"
        )


def run_cases(options: argparse.Namespace, rows: RowFile) -> list[Absence]:
    """Measure every size, write its rows and print its table as it is done."""
    cases = [
        Case(batch, dim, DTYPES[dtype], torch.device(options.device), world_size=options.ranks)
        for dim in options.dims
        for dtype in options.dtypes
        for batch in options.batch_sizes
    ]
    absent = []
    for number, case in enumerate(cases, 1):
        is_large = case.batch > LARGE
        selection = Selection(
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
            total=selection.total_runs(case) if case.world_size == 1 else None,
            unit=" runs",
            leave=False,
        ) as bar:
            if case.world_size > 1:
                new, missing = measure_on_ranks(case, selection)
            else:
                truth = compute_truth(make_features(case))
                new, missing = measure_case(case, selection, truth, lambda bar=bar: bar.update(1))
        rows.add(new)
        print(f"\n{title}, logit scale {LOGIT_SCALE:g}, loss {new[0]['loss']:.3g}")
        print(report.table(new))
        for absence in missing:
            print(f"{absence.name}: {absence.reason}")
        absent += [replace(one, name=f"{one.name} at G {case.batch}") for one in missing]
    return absent


def main(argv: Sequence[str] | None = None) -> None:
    """Run the cases, print their tables, and save what was measured."""
    options = parse(build_parser(), argv, DEFAULTS)
    require_devices(options)
    rows = RowFile(SUBJECT, options, report.case_of)
    absent = run_cases(options, rows)
    print(
        "\nMilliseconds; x floor: time by that of the bare matrix products of the same form; A "
        "faster, B faster: how many\ntimes as fast clipfast's form A, B is; MiB: peak above what "
        "was there before; then relative L2 errors against float64."
    )
    rows.finish(report.plot)
    require_ours(absent)


if __name__ == "__main__":
    main()
