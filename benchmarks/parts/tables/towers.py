"""The tables of ``docs/measured/towers.md``."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.parts.common.harness import Row
from benchmarks.parts.common.rows import faster
from benchmarks.parts.common.schema import DTYPES
from benchmarks.parts.tables.runs import (
    NOT_MEASURED,
    Run,
    beside,
    by_machine,
    error,
    markdown,
    memory,
    number,
    peer_name,
    ratio,
    read_runs,
)

CAPTIONS = {
    "ascii, known words": "ASCII, each word met before",
    "mixed, known words": "mixed, each word met before",
    "ascii, new captions": "ASCII, captions new to both",
    "mixed, new captions": "mixed, captions new to both",
}
FORMS = {
    "clipfast": "clipfast",
    "clipfast-compile": "compiled blocks",
    "clipfast-selective": "recompute selective",
    "clipfast-full": "recompute full",
    "patched": "OpenCLIP, patched",
}


def tokenizer() -> str:
    """Captions per second, by kind of caption."""
    return by_machine(read_runs("tokenizer"), _tokenizer)


def _tokenizer(runs: Sequence[Run]) -> str:
    head = ["captions", "clipfast, per second", f"{peer_name(runs)}, per second", "faster"]
    lines = []
    for run in runs:
        cases = {case.rows[0]["case"]: case for case in run.cases("case")}
        for key, told in CAPTIONS.items():
            if case := cases.get(key):
                ours, theirs = case.find(name="clipfast"), case.starting("OpenCLIP")
                rates = (number(row, "items_per_s") for row in (ours, theirs))
                lines.append([told, *rates, ratio(faster(ours, theirs))])
    return markdown(head, lines)


def text_tower() -> str:
    """The text tower by source of captions and type."""
    return by_machine(read_runs("text_tower"), _text_tower)


def _text_tower(runs: Sequence[Run]) -> str:
    head = ["captions, type", "clipfast ms", f"faster than {peer_name(runs)}", "than it compiled"]
    head += ["than it patched", "peak MiB (OpenCLIP's)"]
    lines = []
    cases = [case for run in runs for case in run.cases("captions", "precision", "width", "batch")]
    for case in sorted(cases, key=lambda case: case.rows[0]["captions"] != "web"):
        by_key = {row["contender"]: row for row in case.rows}
        ours, theirs = by_key.get("clipfast"), by_key.get("openclip")
        first = case.rows[0]
        lines.append(
            [
                f"{first['captions']} {DTYPES[first['precision']]}{beside(runs, theirs)}",
                number(ours, "median_ms"),
                ratio(faster(ours, theirs)),
                ratio(faster(ours, by_key.get("openclip-compile"))),
                ratio(faster(ours, by_key.get("patched"))),
                f"{memory(ours)} ({memory(theirs)})",
            ]
        )
    return markdown(head, lines)


def attention_pool() -> str:
    """The pools by model and type."""
    return by_machine(read_runs("attention_pool"), _attention_pool)


def _attention_pool(runs: Sequence[Run]) -> str:
    head = ["pool, type", "ms", f"faster than {peer_name(runs)}", "than OpenAI's form"]
    head += ["than one query", "peak MiB (OpenCLIP's)", "error (OpenCLIP's)"]
    lines = []
    for case in (case for run in runs for case in run.cases("pool", "dtype", "batch")):
        ours, theirs = case.find(name="clipfast"), case.starting("OpenCLIP")
        first = case.rows[0]
        lines.append(
            [
                f"{first['pool']} {DTYPES[first['dtype']]}",
                number(ours, "median_ms"),
                ratio(faster(ours, theirs)),
                ratio(faster(ours, case.find(name="OpenAI's form"))),
                ratio(faster(ours, case.find(name="one query"))),
                f"{memory(ours)} ({memory(theirs)})",
                f"{error(ours)} ({error(theirs)})",
            ]
        )
    return markdown(head, lines)


def step() -> str:
    """A whole training step by model, type and form."""
    return by_machine(read_runs("step_throughput"), _step)


def _step(runs: Sequence[Run]) -> str:
    head = ["step, type", "form", "images/s", f"faster than {peer_name(runs)}", "than it compiled"]
    head += ["states MiB", "a step adds MiB (OpenCLIP's)", "sum, by OpenCLIP's"]
    lines = []
    for case in (case for run in runs for case in run.cases("model", "batch", "precision")):
        by_key = {row["contender"]: row for row in case.rows}
        theirs, compiled = by_key.get("openclip"), by_key.get("openclip-compile")
        first = case.rows[0]
        title = f"{first['model']}, {first['batch']:,} pairs, {DTYPES[first['precision']]}"
        title += beside(runs, theirs)
        for key in FORMS:
            if ours := by_key.get(key):
                lines.append(
                    [
                        title,
                        FORMS[key],
                        number(ours, "items_per_s"),
                        ratio(faster(ours, theirs)),
                        ratio(faster(ours, compiled)),
                        memory(ours, "state_bytes"),
                        f"{memory(ours)} ({memory(theirs)})",
                        _share(ours, theirs),
                    ]
                )
                title = ""
    return markdown(head, lines)


def patch_gain() -> str:
    """The gain of ``patch_open_clip`` by version, model and captions."""
    return by_machine(read_runs("patch_gain"), _patch_gain)


def _patch_gain(runs: Sequence[Run]) -> str:
    head = ["OpenCLIP", "step", "captions", "ms", "patched", "faster", "by the CPU's time"]
    head += ["error of loss", "of gradients"]
    lines = []
    fields = ("open_clip_version", "model", "setting")
    for case in (case for run in runs for case in run.cases(*fields)):
        plain, patched = (case.find(contender=key) for key in ("plain", "patched"))
        if plain and patched:
            gradients = max(patched["error_image_grad"], patched["error_text_grad"])
            lines.append(
                [
                    plain["open_clip_version"],
                    f"{plain['model']}, {plain['batch']:,} pairs, {DTYPES[plain['precision']]}",
                    plain["setting"],
                    *(number(row, "median_ms") for row in (plain, patched)),
                    ratio(plain["ratio_to_patched"]),
                    ratio(plain["cpu_ratio_to_patched"]),
                    *(f"{error:.0e}" for error in (patched["error_loss"], gradients)),
                ]
            )
    return markdown(head, lines)


def _share(ours: Row, theirs: Row | None) -> str:
    if theirs is None or ours["peak_bytes"] is None or theirs["peak_bytes"] is None:
        return NOT_MEASURED
    return f"{ours['peak_bytes'] / theirs['peak_bytes']:.2f}"
