"""What this machine is, and what bounds every figure taken on it: rates of products and of a copy.

A row per type and library: a square matrix product, checked against float64 first. One more for a
copy of more bytes than any cache holds. On a GPU float32 is timed with and without TF32.

    python benchmarks/ceilings.py

Rows go to ``benchmarks/results/ceilings.jsonl`` under the default options or with --save; with
others, to where --json says.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from benchmarks.parts.common.options import add_run_options, new_parser, parse
from benchmarks.parts.common.rows import RowFile
from benchmarks.parts.common.schema import device_name
from benchmarks.parts.common.text import align
from benchmarks.parts.suite.machine import measure_copy, measure_products, names_on

SUBJECT = "ceilings"
DEFAULTS: dict[str, dict[str, int]] = {"cpu": {}, "cuda": {}}


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = new_parser(__doc__, DEFAULTS)
    add_run_options(parser, DEFAULTS, save="write to results/ in any case")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write and print every rate."""
    options = parse(build_parser(), argv, DEFAULTS)
    device = torch.device(options.device)
    rows = RowFile(SUBJECT, options, lambda row: (row["what"], row.get("dtype")))
    for name in names_on(device):
        rows.add(measure_products(name, device))
    rows.add(measure_copy(device))
    print(device_name(rows.rows[0]))
    lines = []
    for row in rows.rows:
        rate = row.get("flop_per_s")
        told = f"{rate / 1e12:.3g} TFLOP/s" if rate else f"{row['bytes_per_s'] / 1e12:.3g} TB/s"
        lines.append([row["what"], row.get("dtype", ""), row["name"], told])
    print(align(lines))
    rows.finish()


if __name__ == "__main__":
    main()
