"""One table and one plot of what matters most: how many times as fast, subject by subject."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.parts.adamw.problem import MODELS
from benchmarks.parts.common.harness import Row
from benchmarks.parts.common.plots import new_figure, save_figure
from benchmarks.parts.common.rows import faster
from benchmarks.parts.common.schema import DTYPES
from benchmarks.parts.tables.runs import (
    NOT_MEASURED,
    Run,
    markdown,
    ratio,
    read_runs,
)

# In the order of the table's columns.
COLORS = {"fp32": "#1f5fa8", "bf16": "#7fb0e0", "fp16": "#7fb0e0", "": "#3b8a3e"}


@dataclass(frozen=True)
class Headline:
    """One line of the table.

    Attributes:
        what: What was timed.
        kind: ``fp32`` or ``bf16``; empty where there is no choice.
        peer: Against whom, with its version.
        value: How many times as fast clipfast is; None where it was not measured.
        machine: On what.
    """

    what: str
    kind: str
    peer: str
    value: float | None
    machine: str


def headlines(kind: str = "cpu") -> list[Headline]:
    """All lines of one kind of device, each from the newest run that measured it.

    Args:
        kind: ``cpu`` or ``cuda``.
    """
    makers: dict[str, Callable[[Run], list[Headline]]] = {
        "loss_throughput": _loss,
        "step_throughput": _step,
        "text_tower": _text_tower,
        "attention_pool": _attention_pool,
        "adamw": _adamw,
        "tokenizer": _tokenizer,
        "data_throughput": _data,
    }
    found = []
    for subject, make in makers.items():
        lines: dict[tuple[str, str], Headline] = {}
        for run in read_runs(subject):  # the newest first
            if run.rows[0]["device"].startswith(kind):
                for line in make(run):
                    lines.setdefault((line.what, line.kind), line)
        # Types of one subject stay together.
        subjects = list(dict.fromkeys(what for what, _ in lines))
        found += sorted(lines.values(), key=lambda line: subjects.index(line.what))
    return found


def _line(run: Run, what: str, kind: str, ours: Row | None, theirs: Row | None) -> Headline:
    name = NOT_MEASURED if theirs is None else theirs["name"]
    return Headline(what, kind, name, faster(ours, theirs), run.machine)


def _loss(run: Run) -> list[Headline]:
    batch = max(row["batch"] for row in run.rows)
    lines = []
    for case in run.cases("batch", "dtype", "dim", "ranks"):
        first = case.rows[0]
        # On a GPU the form that serves by default has its implementation's name.
        ours = case.find(name="clipfast, keep") or case.find(name="clipfast triton, keep")
        if first["batch"] == batch:
            what = f"loss, {batch:,} pairs, logits kept"
            kind = DTYPES[first["dtype"]]
            lines.append(_line(run, what, kind, ours, case.starting("OpenCLIP")))
    return lines


def _by_key(case: Run) -> tuple[Row | None, Row | None]:
    return case.find(contender="clipfast"), case.find(contender="openclip")


def _step(run: Run) -> list[Headline]:
    return [
        _line(
            run,
            f"training step, {case.rows[0]['model']}",
            DTYPES[case.rows[0]["precision"]],
            *_by_key(case),
        )
        for case in run.cases("model", "batch", "precision")
    ]


def _text_tower(run: Run) -> list[Headline]:
    return [
        _line(run, "text tower, web captions", DTYPES[case.rows[0]["precision"]], *_by_key(case))
        for case in run.cases("width", "batch", "precision", "captions")
        if case.rows[0]["captions"] == "web"
    ]


def _attention_pool(run: Run) -> list[Headline]:
    return [
        _line(
            run,
            f"attention pooling, {case.rows[0]['pool']}",
            DTYPES[case.rows[0]["dtype"]],
            case.find(name="clipfast"),
            case.starting("OpenCLIP"),
        )
        for case in run.cases("pool", "dtype", "batch")
    ]


def _adamw(run: Run) -> list[Headline]:
    lines = []
    for case in run.cases("list"):
        ours, theirs = case.find(contender="fp16"), case.find(contender="torch-fused")
        # On no model's list the states of ten optimizers lie side by side.
        if ours is not None and ours["list"] in MODELS:
            peer = f"{theirs['name']} {theirs['version']}" if theirs else NOT_MEASURED
            what = f"AdamW, fp16 statistics, {ours['list']}"
            lines.append(Headline(what, "fp32", peer, ours["times_torch_fused"], run.machine))
    return lines


def _tokenizer(run: Run) -> list[Headline]:
    return [
        _line(
            run,
            f"tokenizer, {case.rows[0]['case'].replace('ascii', 'ASCII')}",
            "",
            case.find(name="clipfast"),
            case.starting("OpenCLIP"),
        )
        for case in run.cases("case")
        if case.rows[0]["case"].endswith("new captions")
    ]


def _data(run: Run) -> list[Headline]:
    lines = {}
    for case in run.cases("pictures", "image_size", "cores"):
        ours, theirs = case.find(contender="clipfast"), case.find(contender="dataloader")
        # The page has the drawings: what people train on are photographs.
        if ours is not None and not ours["pictures"].startswith("openclipart"):
            what = f"loader, {ours['pictures']} to {ours['image_size']}, a core"
            peer = theirs["name"] if theirs else NOT_MEASURED
            value = theirs and theirs[f"cpu_ratio_to_{ours['name']}"]
            # Of several numbers of cores the last, which is the largest.
            lines[what] = Headline(what, "", peer, value, run.machine)
    return list(lines.values())


def headline() -> str:
    """The table of README, of what was measured on a CPU."""
    return _table(headlines())


def headline_gpu() -> str:
    """The table of README, of what was measured on a GPU."""
    return _table(headlines("cuda"))


def _table(lines: Sequence[Headline]) -> str:
    is_mixed = len({line.machine for line in lines}) > 1
    kinds = [kind for kind in COLORS if any(line.kind == kind for line in lines)]
    values: dict[tuple[str, ...], dict[str, str]] = {}
    for line in lines:
        about = (line.what, line.peer, *([line.machine] if is_mixed else []))
        values.setdefault(about, {})[line.kind] = ratio(line.value)
    return markdown(
        ["what", "against", *(["machine"] if is_mixed else []), *(k or "no type" for k in kinds)],
        [[*about, *(found.get(kind, "") for kind in kinds)] for about, found in values.items()],
    )


def plot(path: Path, lines: Sequence[Headline] | None = None) -> Path:
    """Draw one bar per line, types of one subject next to each other.

    Args:
        path: PNG to write, readable at a width of 800 pixels.
        lines: Of :func:`headlines`, which it calls for the CPU and for a GPU if None.

    Returns:
        The file written.
    """
    lines = [*headlines(), *headlines("cuda")] if lines is None else lines
    lines = [line for line in lines if line.value is not None]
    first = lines[0].machine
    # A machine's name stands beside what was measured on another than the first.
    lines = [
        line if line.machine == first else replace(line, what=f"{line.what}, {line.machine}")
        for line in lines
    ]
    subjects = list(dict.fromkeys(line.what for line in lines))
    figure = new_figure(8, 1.1 + 0.42 * len(subjects))
    axes = figure.add_subplot()
    labelled = set()
    for position, what in enumerate(subjects):
        chosen = [line for line in lines if line.what == what]
        height = 0.8 / len(chosen)
        for place, line in enumerate(chosen):
            at = position + (place - (len(chosen) - 1) / 2) * height
            label = line.kind if line.kind and line.kind not in labelled else None
            labelled.add(line.kind)
            axes.barh(at, line.value - 1, 0.92 * height, 1, color=COLORS[line.kind], label=label)
            axes.text(line.value * 1.02, at, f" {ratio(line.value)}", va="center", fontsize=8)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    largest = max((line.value for line in lines), default=1)
    axes.set_xlim(0.9 * min(1, *(line.value for line in lines)), 1.35 * largest)
    ticks = [tick for tick in (1, 2, 3, 5, 10, 20, 50, 100) if tick <= 1.35 * largest]
    axes.set_xticks(ticks, [f"{tick}x" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(subjects)), subjects, fontsize=9)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend(loc="lower right", fontsize=9)
    machines = ", ".join(dict.fromkeys(line.machine for line in lines))
    axes.set_title(f"Times as fast as OpenCLIP; AdamW: as torch's fused\n{machines}", fontsize=10)
    return save_figure(figure, path, dpi=200)
