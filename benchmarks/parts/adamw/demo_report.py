"""How far apart the runs of ``demo.py`` end: paired differences, their table and their plot.

Runs part within a few dozen steps, as any two roundings do, and the difference of a pair is then
about as large as that of two seeds. So the mean over pairs is set beside its standard error and
beside the deviation of fp32's own seeds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.parts.adamw.demo import CONTROLS, EPOCH, METRICS, RUNS
from benchmarks.parts.common.harness import Row
from benchmarks.parts.common.plots import new_figure, save_figure

# Two-sided 95% of Student's distribution, by pairs less one.
_STUDENT = (math.inf, 12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)


def compare(rows: Sequence[Row], name: str, metric: str) -> Row | None:
    """Paired differences from fp32.

    Args:
        rows: Of :func:`demo.run`.
        name: Whose.
        metric: Of :data:`demo.METRICS`.

    Returns:
        ``pairs``, fp32's ``mean`` and the ``deviation`` of its seeds, the mean ``difference``, its
        ``error``, the half width of its 95% ``interval``, and ``is_equivalent``: it differs where
        the difference is beyond both that interval and the deviation of seeds. The interval says
        what few pairs leave open. None with fewer than two pairs.
    """
    base = {row["seed"]: row[metric] for row in rows if row["name"] == "fp32"}
    own = {row["seed"]: row[metric] for row in rows if row["name"] == name}
    seeds = sorted(base.keys() & own.keys())
    if len(seeds) < 2:
        return None
    differences = [own[seed] - base[seed] for seed in seeds]
    mean = statistics.fmean(differences)
    error = statistics.stdev(differences) / math.sqrt(len(seeds))
    deviation = statistics.stdev(base[seed] for seed in seeds)
    student = _STUDENT[min(len(seeds) - 1, len(_STUDENT) - 1)]
    return {
        "pairs": len(seeds),
        "mean": statistics.fmean(base[seed] for seed in seeds),
        "deviation": deviation,
        "difference": mean,
        "error": error,
        "interval": student * error,
        "is_equivalent": abs(mean) <= max(student * error, deviation),
    }


def table(rows: Sequence[Row]) -> str:
    """One line per optimizer and metric."""
    lines = [
        f"{'':9}{'':28}{'pairs':>6}{'fp32':>9}{'its seeds +-':>14}{'difference':>12}{'+-':>9}"
        f"{'95% +-':>12}"
    ]
    for name in [name for name in RUNS if name != "fp32"]:
        for metric, told in METRICS.items():
            found = compare(rows, name, metric)
            if found is None:
                continue
            verdict = "within seed variance" if found["is_equivalent"] else "DIFFERS"
            lines.append(
                f"{name:9}{told:28}{found['pairs']:6}{found['mean']:9.4f}{found['deviation']:14.4f}"
                f"{found['difference']:+12.4f}{found['error']:9.4f}{found['interval']:12.4f}"
                f"   {verdict}"
            )
    return "\n".join(lines) if len(lines) > 1 else "fewer than two pairs: nothing to compare"


def plot(rows: Sequence[Row], path: Path) -> Path:
    """Draw the loss by epoch, and how far above fp32's of the same seed it is.

    Args:
        rows: Of :func:`demo.run`.
        path: PNG to write.

    Returns:
        The file written.
    """
    epochs = {
        (row["name"], row["seed"]): [
            statistics.fmean(row["losses"][i : i + EPOCH]) for i in range(0, row["steps"], EPOCH)
        ]
        for row in rows
    }
    figure = new_figure(9, 3.6)
    losses, distances = figure.subplots(1, 2)
    for color, name in enumerate(RUNS):
        seeds = [seed for other, seed in epochs if other == name]
        for i, seed in enumerate(seeds):
            label = None if i else f"{name}, {len(seeds)} seeds"
            style = {"color": f"C{color}", "label": label, "linewidth": 1, "alpha": 0.8}
            curve = epochs[name, seed]
            losses.plot(range(1, len(curve) + 1), curve, **style)
            base = epochs.get(("fp32", seed))
            if name != "fp32" and base is not None:
                apart = [own - other for own, other in zip(curve, base, strict=True)]
                distances.plot(range(1, len(curve) + 1), apart, **style)
    losses.set_yscale("log")
    losses.minorticks_off()
    losses.set_yticks([0.2, 0.5, 1.0, 2.0, 5.0], ["0.2", "0.5", "1", "2", "5"])
    losses.set_title("The demo's loss", fontsize=10)
    distances.axhline(0.0, color="C0", linewidth=1)
    distances.set_title("above fp32's of the same seed", fontsize=10)
    for axes in (losses, distances):
        axes.set_xlabel("epoch, the rate going along its cosine to 0")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return save_figure(figure, path)


def complaints(rows: Sequence[Row]) -> list[str]:
    """What contradicts equivalence, and controls that cannot be told from fp32."""
    found = []
    for name in [name for name in RUNS if name != "fp32"]:
        verdicts = {metric: compare(rows, name, metric) for metric in METRICS}
        verdicts = {metric: verdict for metric, verdict in verdicts.items() if verdict}
        differs = [METRICS[m] for m, verdict in verdicts.items() if not verdict["is_equivalent"]]
        if name in CONTROLS and verdicts and not differs:
            found.append(f"{name}: a control, and it trains like fp32")
        if name not in CONTROLS:
            found += [f"{name}: {metric} differs from fp32's" for metric in differs]
    return found
