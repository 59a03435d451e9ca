"""The table of ``docs/measured/loss.md``."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.parts.common.rows import faster
from benchmarks.parts.tables.runs import (
    TYPES,
    Run,
    by_machine,
    markdown,
    memory,
    number,
    peer_name,
    ratio,
    read_runs,
)

FORMS = ("recompute", "keep")
IMPLS = ("", " triton", " cuda")  # named where several were measured, as on a GPU
DIM = 512  # what the page says; another width stands in its row


def loss() -> str:
    """Each form of the loss by batch and type."""
    return by_machine(read_runs("loss_throughput"), _loss)


def _loss(runs: Sequence[Run]) -> str:
    peer = peer_name(runs)
    head = ["G, type", "form", "ms", "by its floor", f"faster than {peer}", "than it compiled"]
    head += ["than chunked torch", "peak MiB (OpenCLIP's)"]
    lines = []
    for case in (case for run in runs for case in run.cases("dtype", "batch", "dim", "ranks")):
        theirs = case.starting("OpenCLIP")
        compiled = None if theirs is None else case.find(name=f"{theirs['name']}, torch.compile")
        for impl, form in ((impl, form) for impl in IMPLS for form in FORMS):
            ours = case.find(name=f"clipfast{impl}, {form}")
            if ours is None:
                continue
            dim = "" if ours["dim"] == DIM else f", D {ours['dim']:,}"
            ranks = f", {ours['ranks']} ranks" if ours["ranks"] > 1 else ""
            lines.append(
                [
                    f"{ours['batch']:,} {TYPES[ours['dtype']]}{dim}{ranks}",
                    f"{impl}, {form}".removeprefix(", ").strip(),
                    number(ours, "median_ms"),
                    f"{ours['ratio_to_floor']:.2f}",
                    ratio(faster(ours, theirs)),
                    ratio(faster(ours, compiled)),
                    ratio(faster(ours, case.find(name="chunked torch"))),
                    f"{memory(ours)} ({memory(theirs)})",
                ]
            )
    return markdown(head, lines)
