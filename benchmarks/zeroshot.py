"""Zero-shot classification against CLIP_benchmark: text classifier and images per second.

CLIP_benchmark's own functions classify with OpenCLIP's model, transform and tokenizer; clipfast
with the same weights. No time is printed unless both classifiers are the same to 1e-5, accuracies
are the same to 0.05 point, and with Pillow's pixels (``--resize pillow`` of ``clipfast.eval``) both
say the same of every image.

    python benchmarks/zeroshot.py
    python benchmarks/zeroshot.py --data cifar10:cifar-10-batches-py --weights runs/cifar10

Rows go to ``benchmarks/results/zeroshot.jsonl`` under the default options or with --save; with
others, to where --json says.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.parts.common.options import add_run_options, new_parser, parse
from benchmarks.parts.common.rows import RowFile
from benchmarks.parts.common.schema import device_name
from benchmarks.parts.common.text import align, times
from benchmarks.parts.zeroshot.measure import measure
from benchmarks.parts.zeroshot.peer import functions
from benchmarks.parts.zeroshot.problem import SAMPLE, labelled, make_problem, set_threads

SUBJECT = "zeroshot"
MODEL = "ViT-B/32"  # with random weights, where nothing is said
DEFAULTS = {
    "cpu": {
        "data": [SAMPLE],
        "images": 64,
        "runs": 3,
        "threads": 2,
        "workers": [0, 2],
    },
    "cuda": {
        "data": [SAMPLE],
        "images": 2048,
        "runs": 3,
        "threads": 8,
        "workers": [8],
    },
}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser(__doc__, DEFAULTS)
    parser.add_argument("--data", nargs="+", help=f"sets, as in clipfast.eval, or {SAMPLE}")
    parser.add_argument("--model", help=f"its name; default: that of --weights, else {MODEL}")
    parser.add_argument("--weights", type=Path, help="a file or the folder of a run")
    parser.add_argument("--images", type=int, help="of each set, at most; 0: all")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--workers", type=int, nargs="+", help="of CLIP_benchmark's loader")
    add_run_options(parser, DEFAULTS, save="write to results/ in any case")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every set, print and write the rows."""
    options = parse(build_parser(), argv, DEFAULTS)
    try:
        functions()
    except ImportError as error:
        raise SystemExit(str(error)) from None
    rows = RowFile(SUBJECT, options, lambda row: row["case"])
    before = set_threads(options.threads)
    try:
        for source in options.data:
            images = labelled(source, options.images or None)
            model = options.model or (None if options.weights else MODEL)
            problem = make_problem(images, model, options.weights)
            rows.add(
                measure(problem, options.device, options.runs, options.threads, options.workers)
            )
    finally:
        set_threads(before)
    print(device_name(rows.rows[0]))
    lines = [["case", "", "per second", "x faster", "accuracy", "recall", "said otherwise"]]
    for row in rows.rows:
        line = [row["case"], row["name"], f"{row['items_per_s']:,.1f}"]
        line.append(times(row.get("ratio_to_clipfast")))
        if "acc1" in row:
            line += [f"{row['acc1']:.2%}", f"{row['mean_per_class_recall']:.4%}"]
            line.append(str(row["said_otherwise"]))
        lines.append(line + [""] * (len(lines[0]) - len(line)))
    print(align(lines))
    rows.finish()


if __name__ == "__main__":
    main()
