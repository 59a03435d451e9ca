"""Time and memory of the text tower, forward and backward, against OpenCLIP's.

Timed: ``encode_text`` from tokens to features, and back from a fixed gradient of the features to
those of all parameters. Both towers have the same random weights and see the same captions:
OpenCLIP's padded to 77 tokens, as its tokenizer gives them, clipfast's cut to the longest with
their lengths, as its loader gives them. OpenCLIP's time does not depend on the captions; ours does,
so there are two sources (``captions.py``): the embedded sample's, and web-like lengths of mean 20.

Before it is timed, each contender's features and gradients are compared with those of OpenCLIP's
tower in float32; under autocast it may be off by twice what OpenCLIP is.

    python benchmarks/text_tower.py                        what this machine's default is
    python benchmarks/text_tower.py --widths 512 --batch 64 --captions web

Rows go to ``benchmarks/results/text_tower.jsonl`` and the plot beside it, under the default options
or with --save; with others, to where --json and --plot say.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from tqdm import tqdm

from benchmarks.parts.common import peers
from benchmarks.parts.common.captions import SOURCES, make_captions
from benchmarks.parts.common.contest import Absence, require_ours
from benchmarks.parts.common.options import add_run_options, new_parser, parse
from benchmarks.parts.common.rows import RowFile
from benchmarks.parts.step.contenders import PRECISIONS, Case
from benchmarks.parts.step.measure import forget
from benchmarks.parts.step.report import case_of
from benchmarks.parts.text import report
from benchmarks.parts.text.contenders import CONTENDERS, MODELS, Field, overrides_of
from benchmarks.parts.text.measure import measure_case

SUBJECT = "text_tower"
DEFAULTS = {
    "cpu": {
        "widths": [512],
        "batch": 32,
        "precisions": ["fp32", "amp_bf16"],
        "contenders": ["clipfast", "patched", "openclip", "openclip-compile"],
        "runs": 3,
    },
    "cuda": {
        "widths": [512, 768],
        "batch": 1024,
        "precisions": ["amp_bf16"],
        "contenders": list(CONTENDERS),
        "runs": 20,
    },
}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser(__doc__, DEFAULTS)
    parser.add_argument("--widths", type=int, nargs="+", choices=MODELS)
    parser.add_argument("--batch", type=int, help="captions")
    parser.add_argument("--layers", type=int, default=12, help="blocks")
    parser.add_argument("--captions", nargs="+", choices=SOURCES, default=list(SOURCES))
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS)
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS)
    add_run_options(parser, DEFAULTS, save="write to results/, beside the rows of other cases")
    return parser


def run_cases(options: argparse.Namespace, rows: RowFile) -> list[Absence]:
    """Measure every width, precision and source of captions; write and print each as it is done."""
    absent = []
    device = torch.device(options.device)
    total = len(options.widths) * len(options.precisions) * len(options.captions)
    runs_of_case = len(options.contenders) * (options.runs + 2)
    with tqdm(total=total * runs_of_case, unit=" runs", leave=False) as bar:
        for width in options.widths:
            for precision in options.precisions:
                overrides = tuple({**overrides_of(width), "text_layers": options.layers}.items())
                case = Case(MODELS[width], options.batch, precision, device, overrides=overrides)
                field = Field(case)
                towers, missing = field.towers(options.contenders)
                for source in options.captions:
                    captions = make_captions(source, options.batch, device=device)
                    bar.set_description(f"width {width}, {precision}, {source}")
                    new, wrong = measure_case(
                        case, captions, field.reference(), towers, options.runs, bar.update
                    )
                    rows.add(new)
                    told = captions.fields
                    bar.write(
                        f"\nwidth {width}, {options.layers} layers, batch {options.batch}, "
                        f"{precision}, {device.type}; {source} captions of "
                        f"{told['mean_length']:.3g} tokens, the longest {told['max_length']}"
                    )
                    bar.write(report.table(new))
                    for absence in [*missing, *wrong]:
                        bar.write(f"{absence.name}: {absence.reason}")
                    absent += [*missing, *wrong]
                del field, towers
                forget()
    return absent


def main(argv: Sequence[str] | None = None) -> None:
    """Run the cases, print their tables, and save what was measured."""
    options = parse(build_parser(), argv, DEFAULTS)
    peers.require_open_clip()
    rows = RowFile(SUBJECT, options, case_of)
    absent = run_cases(options, rows)
    rows.finish(report.plot)
    require_ours(absent)


if __name__ == "__main__":
    main()
