"""A whole training step of clipfast and of OpenCLIP: time, memory, model FLOP utilisation, parts.

A step is both towers, the loss, the backward, and one update by the same ``torch.optim.AdamW``
(fused). All contenders start from the same random weights and see the same pairs, each in the
layout of its own loader (``step_contenders.py``). OpenCLIP runs as its training program does with
its best ordinary options: autocast, ``cudnn.benchmark``, TF32 for what stays float32, one process;
eager, under its ``torch.compile``, and with its checkpointing. It appears once more behind
``clipfast.patch_open_clip``, in its own form otherwise.

Before it is timed, each contender's loss and gradients are compared with those of OpenCLIP's model
in float32; what is off by more than plain OpenCLIP in the same precision gets no row.

MFU is the plain model's FLOP (padded tokens, nothing recomputed), by the time of the step, by the
fastest bare matrix product of the same run. TFLOP are those really done, where they can be counted.

    python benchmarks/step_throughput.py                         what this machine's default is
    python benchmarks/step_throughput.py --models ViT-B/32 --batch-sizes 64
    python benchmarks/step_throughput.py --contenders clipfast openclip --precisions fp32

Rows go to ``benchmarks/results/step_throughput.jsonl`` and the plot beside it, under the default
options or with --save; with others, to where --json and --plot say.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.parts.common import harness, peers
from benchmarks.parts.common.captions import SOURCES
from benchmarks.parts.step import measure as step_measure
from benchmarks.parts.step import report as step_report
from benchmarks.parts.step.contenders import CONTENDERS, PRECISIONS, Case
from clipfast.models import list_models

SUBJECT = "step_throughput"
# Largest batches at which plain OpenCLIP fits beside the other contenders' weights.
BATCHES = {
    "cpu": {"RN50": 16, "ViT-B/32": 32, "RN-tiny": 16, "ViT-tiny": 16},
    "cuda": {"RN50": 256, "RN50x64": 24, "ViT-B/32": 1024, "ViT-L/14": 128},
}
DEFAULTS = {
    "cpu": {
        "models": ["RN50", "ViT-B/32"],
        "precisions": ["fp32", "amp_bf16"],
        "contenders": [
            *("clipfast", "clipfast-selective", "patched"),
            *("openclip", "openclip-compile"),
        ],
        "runs": 3,
    },
    "cuda": {
        "models": ["RN50", "RN50x64", "ViT-B/32", "ViT-L/14"],
        "precisions": ["amp_bf16"],
        "contenders": list(CONTENDERS),
        "runs": 15,
    },
}
OTHER_BATCH = 16


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="without options: " + "; ".join(f"{k}: {v}" for k, v in DEFAULTS.items()),
    )
    parser.add_argument("--models", nargs="+", choices=list_models(), metavar="NAME")
    parser.add_argument(
        "--batch-sizes", type=int, nargs="+", help="one for each model, or one for all"
    )
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS)
    parser.add_argument("--captions", choices=SOURCES, default="web", help="whose lengths")
    parser.add_argument("--image-size", type=int, help="instead of the model's own")
    parser.add_argument("--runs", type=int, help="timed steps of each contender")
    parser.add_argument("--device", choices=DEFAULTS, help="CUDA where there is one, else the CPU")
    parser.add_argument(
        "--save", action="store_true", help="write to results/, beside the rows of other cases"
    )
    parser.add_argument("--json", type=Path, help="file for the rows, one a line")
    parser.add_argument("--plot", type=Path, help="file for the plot")
    return parser


def resolve(arguments: argparse.Namespace) -> argparse.Namespace:
    """The arguments with this machine's defaults in place of what was not given."""
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    options = argparse.Namespace(
        **{"image_size": None, "json": None, "plot": None, "batch_sizes": None},
    )
    vars(options).update(DEFAULTS[device], **{**given, "device": device})
    sizes = options.batch_sizes
    if sizes is None:
        sizes = [BATCHES[device].get(model, OTHER_BATCH) for model in options.models]
    elif len(sizes) == 1:
        sizes = sizes * len(options.models)
    if len(sizes) != len(options.models):
        raise SystemExit(
            f"--batch-sizes: {len(sizes)} sizes for {len(options.models)} models; give one for "
            "each, or one for all"
        )
    options.batch_sizes = sizes
    return options


def make_cases(options: argparse.Namespace) -> list[Case]:
    """Every model in every precision."""
    overrides = (("image_size", options.image_size),) if options.image_size else ()
    return [
        Case(
            model,
            batch,
            precision,
            torch.device(options.device),
            captions=options.captions,
            overrides=overrides,
        )
        for model, batch in zip(options.models, options.batch_sizes, strict=True)
        for precision in options.precisions
    ]


def run_cases(
    options: argparse.Namespace,
) -> tuple[list[harness.Row], list[tuple[Case, step_measure.Absence]]]:
    """Measure every case, print its tables as it is done."""
    cases = make_cases(options)
    rows, absent = [], []
    for number, case in enumerate(cases, 1):
        title = f"{case.model}, batch {case.batch:,}, {case.precision}, {case.device.type}"
        began = time.perf_counter()
        with tqdm(desc=f"case {number}/{len(cases)}: {title}", unit=" runs", leave=False) as bar:

            def tick(told: str, bar: tqdm = bar) -> None:
                bar.update(1)
                bar.set_postfix_str(told, refresh=True)

            new, missing = step_measure.measure_case(case, options.contenders, options.runs, tick)
        step_measure.forget()
        print(f"\n{title}; measured in {time.perf_counter() - began:.0f} s")
        if new:
            print(
                f"{new[0]['captions']} captions of {new[0]['mean_length']:.3g} tokens; matrix "
                f"products {new[0]['gemm_flop_per_s'] / 1e12:.3g} TFLOP/s; plain model "
                f"{new[0]['model_flop'] / 1e12:.3g} TFLOP a step\n"
            )
            print(step_report.table(new))
        for absence in missing:
            print(f"{absence.name}: {absence.reason}")
        rows += new
        absent += [(case, absence) for absence in missing]
    return rows, absent


def main(argv: Sequence[str] | None = None) -> None:
    """Run the cases, print their tables, and save what was measured."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    is_default = vars(arguments) == vars(parser.parse_args([]))
    options = resolve(arguments)
    try:
        peers.import_open_clip()
    except ImportError as error:
        raise SystemExit(str(error)) from None
    peers.use_open_clips_backends()
    rows, absent = run_cases(options)
    print(
        "\nx A: time by that of A. MFU: the plain model's FLOP by time by the rate of matrix "
        "products; it passes 100\nwhere padding is left out. done: the same of the FLOP really "
        "done, which TFLOP has. state: parameters, buffers,\noptimizer; + peak: what a step adds. "
        "Then the errors of the loss and of the gradients of image tower, text\ntower and "
        "log-scale, relative, against float32."
    )
    if rows:
        step_report.save(
            SUBJECT, rows, step_report.plot, options.json, options.plot, is_default, options.save
        )
    failed = [f"{absence.name} on {case.model}" for case, absence in absent if absence.is_ours]
    if failed:
        raise SystemExit(f"clipfast has no figure for: {', '.join(failed)}")


if __name__ == "__main__":
    main()
