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
from dataclasses import replace

import torch
from tqdm import tqdm

from benchmarks.parts.common import peers
from benchmarks.parts.common.captions import SOURCES
from benchmarks.parts.common.contest import Absence, require_ours
from benchmarks.parts.common.options import add_run_options, new_parser, parse
from benchmarks.parts.common.rows import RowFile
from benchmarks.parts.step import report
from benchmarks.parts.step.contenders import CONTENDERS, PRECISIONS, Case
from benchmarks.parts.step.measure import forget, measure_case
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
    """The command line."""
    parser = new_parser(__doc__, DEFAULTS)
    parser.add_argument("--models", nargs="+", choices=list_models(), metavar="NAME")
    parser.add_argument("--batch-sizes", type=int, nargs="+", help="one per model, or one for all")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS)
    parser.add_argument("--captions", choices=SOURCES, default="web", help="whose lengths")
    parser.add_argument("--image-size", type=int, help="instead of the model's own")
    add_run_options(parser, DEFAULTS, save="write to results/, beside the rows of other cases")
    return parser


def batch_sizes(options: argparse.Namespace) -> list[int]:
    """One batch size per model."""
    sizes = options.batch_sizes
    if sizes is None:
        sizes = [BATCHES[options.device].get(model, OTHER_BATCH) for model in options.models]
    elif len(sizes) == 1:
        sizes = sizes * len(options.models)
    if len(sizes) != len(options.models):
        raise SystemExit(
            f"--batch-sizes: {len(sizes)} sizes for {len(options.models)} models; give one for "
            "each, or one for all"
        )
    return sizes


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
        for model, batch in zip(options.models, batch_sizes(options), strict=True)
        for precision in options.precisions
    ]


def run_cases(options: argparse.Namespace, rows: RowFile) -> list[Absence]:
    """Measure every case, write its rows and print its tables as it is done."""
    cases = make_cases(options)
    absent = []
    for number, case in enumerate(cases, 1):
        title = f"{case.model}, batch {case.batch:,}, {case.precision}, {case.device.type}"
        began = time.perf_counter()
        with tqdm(desc=f"case {number}/{len(cases)}: {title}", unit=" runs", leave=False) as bar:

            def tick(told: str, bar: tqdm = bar) -> None:
                bar.update(1)
                bar.set_postfix_str(told, refresh=True)

            new, missing = measure_case(case, options.contenders, options.runs, tick)
        rows.add(new)
        forget()
        print(f"\n{title}; measured in {time.perf_counter() - began:.0f} s")
        if new:
            print(
                f"{new[0]['captions']} captions of {new[0]['mean_length']:.3g} tokens; matrix "
                f"products {new[0]['gemm_flop_per_s'] / 1e12:.3g} TFLOP/s "
                f"({new[0]['gemm_library']}); plain model "
                f"{new[0]['model_flop'] / 1e12:.3g} TFLOP per step\n"
            )
            print(report.table(new))
        for absence in missing:
            print(f"{absence.name}: {absence.reason}")
        absent += [replace(one, name=f"{one.name} on {case.model}") for one in missing]
    return absent


def main(argv: Sequence[str] | None = None) -> None:
    """Run the cases, print their tables, and save what was measured."""
    options = parse(build_parser(), argv, DEFAULTS)
    peers.require_open_clip()
    rows = RowFile(SUBJECT, options, report.case_of)
    absent = run_cases(options, rows)
    print(
        "\nA faster: how many times as fast A is. MFU: the plain model's FLOP by time by the rate "
        "of matrix products; it\npasses 100 where padding is left out. done: the same of the FLOP "
        "really done, which TFLOP has. state: parameters,\nbuffers, optimizer; + peak: what a step "
        "adds. Then the errors of the loss and of the gradients of image tower,\ntext tower and "
        "log-scale, relative, against float32."
    )
    rows.finish(report.plot)
    require_ours(absent)


if __name__ == "__main__":
    main()
