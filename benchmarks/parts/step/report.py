"""The tables and the plot of ``step_throughput.py``."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.parts.common import harness
from benchmarks.parts.common.harness import Row
from benchmarks.parts.loss.report import device_name

PART_NAMES = {
    "image_forward": "image fwd",
    "image_backward": "image bwd",
    "text_forward": "text fwd",
    "text_backward": "text bwd",
    "loss": "loss",
    "optimizer": "optimizer",
}
PART_COLORS = ("#1f5fa8", "#7fb0e0", "#c05a1c", "#f0a873", "#3b8a3e", "#8a8a8a")
ERRORS = ("error_loss", "error_image_grad", "error_text_grad", "error_scale_grad")


def table(rows: Sequence[Row]) -> str:
    """One case's rows as two tables: the whole step, then its parts in milliseconds."""
    ours = [row["name"] for row in rows if row["contender"].startswith("clipfast")]
    letters = dict(zip(ours, "ABCDEFGH", strict=False))
    head = ["", "images/s", "ms", "p20", "p80", *(f"x {letter}" for letter in letters.values())]
    head += [
        "MFU %",
        "done %",
        "TFLOP",
        "state MiB",
        "+ peak MiB",
        "loss",
        "image",
        "text",
        "scale",
    ]
    whole, parts = [head], [["", *PART_NAMES.values(), "sum"]]
    for row in rows:
        name = row["name"]
        name = f"{letters[name]}: {name}" if name in letters else name
        whole.append(
            [
                name,
                *(_digits(row[key]) for key in ("items_per_s", "median_ms", "p20_ms", "p80_ms")),
                *(_digits(row.get(f"ratio_to_{base}")) for base in ours),
                f"{100 * row['mfu']:.1f}",
                "" if row["done_flop"] is None else f"{100 * _done(row):.1f}",
                _digits(row["done_flop"], 1e12),
                _digits(row["state_bytes"], 2**20),
                _digits(row["peak_extra_bytes"], 2**20),
                *(f"{row[key]:.0e}" for key in ERRORS),
            ]
        )
        if row["parts_ms"]:
            times = [row["parts_ms"][part] for part in PART_NAMES]
            parts.append([name, *(_digits(value) for value in times), _digits(sum(times))])
    return f"{_align(whole)}\n\n{_align(parts)}"


def _done(row: Row) -> float:
    """What is really computed, by time, by the rate of matrix products."""
    return row["done_flop"] / (row["median_ms"] / 1e3) / row["gemm_flop_per_s"]


def _align(lines: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        line[0].ljust(widths[0])
        + "".join(
            "  " + cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)
        )
        for line in lines
    )


def _digits(value: float | None, unit: float = 1) -> str:
    if value is None:
        return ""
    value = value / unit
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def plot(rows: Sequence[Row], path: Path) -> Path:
    """Draw a picture a case: one bar a contender, its parts stacked, as long as its step.

    The parts are measured apart from the step; they are drawn in proportion, scaled to it. A step
    that is one compiled function has one grey bar.

    Args:
        rows: Rows of several cases.
        path: PNG to write.

    Returns:
        The file written.
    """
    # The object interface: pyplot would pick a display and keep the figure alive.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    cases = list(dict.fromkeys(_case(row) for row in rows))
    chosen = {case: [row for row in rows if _case(row) == case] for case in cases}
    heights = [0.7 + 0.36 * len(of_case) for of_case in chosen.values()]
    figure = Figure(figsize=(10.5, sum(heights) + 1.1), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(cases), 1, squeeze=False, gridspec_kw={"height_ratios": heights})
    for axes, case in zip(grid[:, 0], cases, strict=True):
        _draw(axes, case, chosen[case])
    handles = [
        Patch(color=color, label=name)
        for name, color in zip(PART_NAMES.values(), PART_COLORS, strict=True)
    ]
    handles.append(Patch(color="lightgrey", label="whole step, compiled"))
    figure.legend(handles=handles, loc="outside lower center", ncols=7, fontsize=8)
    figure.suptitle("One training step: both towers, loss, backward, optimizer", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return path


def _draw(axes: Any, case: str, rows: Sequence[Row]) -> None:
    base = next((row for row in rows if row["contender"] == "openclip"), rows[0])
    for position, row in enumerate(rows):
        if row["parts_ms"]:
            scale = row["median_ms"] / sum(row["parts_ms"].values())
            left = 0.0
            for part, color in zip(PART_NAMES, PART_COLORS, strict=True):
                width = row["parts_ms"][part] * scale
                axes.barh(position, width, left=left, color=color)
                left += width
        else:
            axes.barh(position, row["median_ms"], color="lightgrey")
        told = f"  {row['items_per_s']:,.3g} images/s"
        if row is not base:
            told += f", {base['median_ms'] / row['median_ms']:.2f}x {base['name']}"
        axes.text(row["median_ms"], position, told, va="center", fontsize=8)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.4)
    axes.set_xlabel("milliseconds a step", fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_title(case, fontsize=9)


def _case(row: Row) -> str:
    captions = f"{row['captions']} captions of {row['mean_length']:.3g} tokens"
    return (
        f"{row['model']}, batch {row['batch']:,}, {row['precision']}, {captions}; "
        f"{device_name(row)}"
    )


def _case_key(row: Row) -> tuple:
    """What rows of one case have in common, and no others."""
    kind = row["device"].split(":")[0]
    return kind, *(row.get(key) for key in ("model", "width", "batch", "precision", "captions"))


def save(
    subject: str,
    rows: list[Row],
    draw: Callable[[Sequence[Row], Path], Path],
    path: Path | None,
    picture: Path | None,
    is_default: bool,
    keep: bool = False,
) -> None:
    """Write and draw rows, and say where they are.

    Args:
        subject: Name of the files in ``benchmarks/results``, which default options write.
        rows: Of one run.
        draw: Makes the plot.
        path: File for the rows instead.
        picture: File for the plot instead.
        is_default: Whether the run had default options; other devices' rows are then kept.
        keep: Write there whatever the options; all rows but those of the same cases are kept.
    """
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The harness names files by subject, with an ending of its own.
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            harness.write_rows(subject, rows, directory=Path(folder)).replace(path)
    elif is_default or keep:
        kind = rows[0]["device"].split(":")[0]
        cases = {_case_key(row) for row in rows}
        path = harness.write_rows(
            subject,
            rows,
            retain=lambda row: (
                _case_key(row) not in cases if keep else not row["device"].startswith(kind)
            ),
        )
    print(f"\nrows: {path or 'not written; --json PATH writes them'}")

    picture = picture or (harness.RESULTS / f"{subject}.png" if is_default or keep else None)
    if picture is not None:
        if path is not None:
            # From the file, whose rows carry the machine's name, and other devices' rows too.
            rows = [json.loads(line) for line in path.read_text().splitlines()]
        draw(rows, picture)
    print(f"plot: {picture or 'not drawn; --plot PATH draws it'}")
