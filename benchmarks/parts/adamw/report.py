"""The table and the plot of ``adamw.py``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.parts.common.harness import Row
from benchmarks.parts.loss.report import device_name


def table(rows: Sequence[Row]) -> str:
    """One list's rows as text.

    ``B/param`` is what a step moves, counted from the types; ``of copy`` and ``in place`` its rate
    by those of large copies and of products in place in the same run; ``x torch`` how many times as
    fast as torch's fused AdamW in float32.
    """
    first = rows[0]
    lines = [
        f"\n{first['list']}: {first['elements']:,} parameters in {first['tensors']} tensors, "
        f"{first['device']}, {first['threads']} threads; a copy moves "
        f"{first['copy_gb_per_s']:.1f} GB/s, a product in place {first['in_place_gb_per_s']:.1f}",
        f"{'':54}{'ms':>9}{'p20':>9}{'p80':>9}{'B/param':>9}{'GB/s':>8}{'of copy':>9}"
        f"{'in place':>10}{'x torch':>9}{'state B/param':>15}{'peak MiB':>10}{'error':>12}",
    ]
    for row in rows:
        name = row["name"] + (f" {row['version']}" if row["version"] else "")
        times = row["times_torch_fused"]
        speed = "" if times is None else f"{times:.2f}"
        extra = row["peak_extra_bytes"]
        error = f"{row['error']:.0e}" if "error" in row else f"{row['error_ulp']:.2f} ulp"
        lines.append(
            f"{name:54}{row['median_ms']:9.1f}{row['p20_ms']:9.1f}{row['p80_ms']:9.1f}"
            f"{row['bytes_moved'] / row['elements']:9.2f}{row['gb_per_s']:8.1f}"
            f"{row['of_copy']:9.0%}{row['of_in_place']:10.0%}{speed:>9}"
            f"{row['state_bytes_per_parameter']:15.3f}"
            f"{'' if extra is None else f'{extra / 2**20:,.0f}':>10}{error:>12}"
        )
    return "\n".join(lines)


def plot(rows: Sequence[Row], path: Path) -> Path:
    """Draw a picture a machine and list: bars of a step's time, a tick where its floor is.

    Args:
        rows: Of any number of lists and machines.
        path: PNG to write.

    Returns:
        The file written.
    """
    # The object interface: pyplot would pick a display and keep the figure alive.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cases = list(dict.fromkeys(_case(row) for row in rows))
    chosen = {case: [row for row in rows if _case(row) == case] for case in cases}
    heights = [0.8 + 0.3 * len(of_case) for of_case in chosen.values()]
    figure = Figure(figsize=(10, sum(heights) + 0.7), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(cases), 1, squeeze=False, gridspec_kw={"height_ratios": heights})
    for axes, case in zip(grid[:, 0], cases, strict=True):
        _draw(axes, chosen[case])
        axes.set_title(case, fontsize=9)
    grid[-1, 0].set_xlabel(
        "milliseconds a step; black: as many bytes copied or changed in place, in the same run",
        fontsize=9,
    )
    figure.suptitle("AdamW: one step", fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return path


def _case(row: Row) -> str:
    return f"{device_name(row)}: {row['list']}, {row['elements'] / 1e6:,.0f}M parameters"


def _draw(axes: Any, rows: Sequence[Row]) -> None:
    for position, row in enumerate(rows):
        own, is_ours = row["median_ms"], row["name"].startswith("clipfast")
        error = [[own - row["p20_ms"]], [row["p80_ms"] - own]]
        color = "#1f5fa8" if is_ours else "#b5b5b5"
        axes.barh(position, own, xerr=error, color=color, ecolor="#444444", capsize=2)
        axes.plot([row["floor_ms"]] * 2, [position - 0.4, position + 0.4], color="black")
        times = row["times_torch_fused"]
        told = f"  {own:,.3g} ms, {row['of_copy']:.0%} of copy"
        told += "" if times is None else f", {times:.2f}x torch"
        axes.text(max(row["p80_ms"], row["floor_ms"]), position, told, va="center", fontsize=7)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows], fontsize=7)
    axes.tick_params(axis="x", labelsize=7)
    axes.invert_yaxis()
    axes.margins(x=0.3)
