"""The tables of ``docs/measured/loss.md``."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.parts.common.rows import faster
from benchmarks.parts.common.schema import DTYPES
from benchmarks.parts.tables.runs import (
    NOT_MEASURED,
    Run,
    by_machine,
    error,
    markdown,
    memory,
    number,
    peer_name,
    ratio,
    read_runs,
)

FORMS = ("recompute", "keep")
IMPLS = ("", " triton", " cuda")  # named where several were measured, as on a GPU
RIVALS = ("Inf-CL", "memeff", "siglip-kernel")
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
            # A run beside the rivals alone has its own table.
            if ours is None or (theirs is None and _has_rivals(case)):
                continue
            dim = "" if ours["dim"] == DIM else f", D {ours['dim']:,}"
            ranks = f", {ours['ranks']} ranks" if ours["ranks"] > 1 else ""
            lines.append(
                [
                    f"{ours['batch']:,} {DTYPES[ours['dtype']]}{dim}{ranks}",
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


ERRORS = {
    "error_loss": "loss",
    "error_image_grad": "image gradients",
    "error_text_grad": "text gradients",
    "error_scale_grad": "scale's gradient",
}


def loss_errors() -> str:
    """Errors against float64 of ours and of OpenCLIP, at the largest batch of each machine."""
    return by_machine(read_runs("loss_throughput"), _errors)


def _errors(runs: Sequence[Run]) -> str:
    largest = max(row["batch"] for run in runs for row in run.rows)
    lines = []
    for case in (case for run in runs for case in run.cases("dtype", "batch", "dim", "ranks")):
        for row in case.rows:
            is_plain = (
                row["name"].startswith(("clipfast", "OpenCLIP")) and "compile" not in row["name"]
            )
            if row["batch"] == largest and is_plain:
                told = f"{row['batch']:,} {DTYPES[row['dtype']]}"
                told += "" if row["dim"] == DIM else f", D {row['dim']:,}"
                lines.append([told, row["name"], *(error(row, key) for key in ERRORS)])
    return markdown(["G, type", "", *ERRORS.values()], lines)


def _has_rivals(case: Run) -> bool:
    return any(row["name"].startswith(RIVALS) for row in case.rows)


def loss_rivals() -> str:
    """The rivals' kernels on a GPU beside ours in the same run."""
    runs = read_runs("loss_throughput")
    head = ["rival", "on", "G, type", "its ms", "peak MiB", "ours, ms", "faster"]
    lines = []
    for rival in RIVALS:
        found = []
        for case in (case for run in runs for case in run.cases("dtype", "batch", "dim", "ranks")):
            theirs = next((row for row in case.rows if row["name"].startswith(rival)), None)
            ours = case.find(name="clipfast triton, keep") or case.find(name="clipfast, keep")
            if theirs is not None:
                told = f"{theirs['batch']:,} {DTYPES[theirs['dtype']]}, D {theirs['dim']:,}"
                cells = [number(theirs, "median_ms"), memory(theirs), number(ours, "median_ms")]
                name = case.machine.removeprefix("NVIDIA ")
                found.append([theirs["name"], name, told, *cells, ratio(faster(ours, theirs))])
        lines += found or [[rival, "", "", *[NOT_MEASURED] * 4]]
    return markdown(head, lines)
