"""The tables of ``docs/measured/optimizer.md``."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.parts.adamw.demo import METRICS
from benchmarks.parts.adamw.demo_report import compare
from benchmarks.parts.adamw.problem import FLAT, MODELS, SMALL
from benchmarks.parts.common.harness import Row
from benchmarks.parts.common.rows import by_case
from benchmarks.parts.tables.runs import (
    NOT_MEASURED,
    Run,
    by_machine,
    markdown,
    ratio,
    read_runs,
)

GRADIENTS = {
    "narrow": "narrow",
    "log-normal": "log-normal",
    "8 decades": "8 decades",
    "sparse": "sparse rows",
    "trace": "the demo's, recorded",
    "flat trace": "the same, flat as under ZeRO",
}
STATISTICS = {
    "fp16 m, sqrt(v)": "fp16 (ours)",
    "bf16 m, sqrt(v)": "bf16 (ours)",
    "fp16, to nearest": "to nearest",
    "fp16, one scale a tensor": "one scale per tensor",
    "bf16 v, to nearest": "bf16 v",
}
WEIGHTS = {
    "bf16 and remainder": "bf16 + remainder",
    "bf16, stochastic": "bf16 stochastic",
    "fp16, stochastic": "fp16 stochastic",
    "bf16, to nearest": "bf16 to nearest (control)",
}
DEMO = {
    "final_loss": "loss, last epoch",
    "late_loss": "loss, last quarter of the cosine",
    "recall_trained": "R@1, the trained artist",
    "recall_unseen": "R@1, the other artist",
}
# Adam's of the paper's ResNets; the other one is milder.
BETA2 = 0.999


def adamw_error() -> str:
    """Error of the update and bias of v, by gradients and form of the statistics."""
    runs = read_runs("adamw_proof")
    lines = []
    for key, told in GRADIENTS.items():
        found = (_newest(runs, gradients=key, beta2=BETA2, name=name) for name in STATISTICS)
        lines.append([told, *map(_error, found)])
    return markdown(["gradients", *STATISTICS.values()], lines)


def _newest(runs: Sequence[Run], **fields: object) -> Row | None:
    """The row of the newest run that has one."""
    return next((row for run in runs if (row := run.find(**fields))), None)


def _error(row: Row | None) -> str:
    if row is None:
        return NOT_MEASURED
    error, bias = row["update_error"], row["v_bias"]
    told = f"{error:.0f}x" if error >= 10 else f"{error:.0%}" if error >= 0.1 else f"{error:.2%}"
    return f"{told}, {bias:+.3%}" if abs(bias) < 0.005 else f"{told}, {bias:+.1%}"


def adamw_late() -> str:
    """How far weights go in the late cosine, as a share of the way of fp32's."""
    runs = read_runs("adamw_proof")
    truth = _newest(runs, name="fp32", problem="trace")
    lines = []
    for name, told in WEIGHTS.items():
        replayed, quadratic = (
            _newest(runs, name=name, problem=problem) for problem in ("trace", "quadratic")
        )
        cell = _progress(replayed)
        if name == "bf16 and remainder" and truth is not None:
            cell += f" (fp32: {_progress(truth)})"
        lines.append([told, cell, _progress(quadratic)])
    head = ["late cosine, weights", "the demo's recorded gradients, rate 0.4% of its peak"]
    return markdown([*head, "a quadratic, cosine to 0"], lines)


def _progress(row: Row | None) -> str:
    if row is None:
        return NOT_MEASURED
    stalled = f", {row['unmoved']:.0%} never moved" if row["is_control"] else ""
    return f"{row['progress']:.4f}{stalled}"


def adamw_demo() -> str:
    """The demo from paired seeds: differences from fp32 with their 95% intervals."""
    # A run of the demo is a whole training. Pairs are compared, and not times.
    rows = [row for run in reversed(read_runs("adamw_demo")) for row in run.rows]
    by_name = by_case(rows, lambda row: row["name"])
    first = next(iter(METRICS))
    pairs = {name: compare(rows, name, first) for name in ("paper", "nearest")}
    counts = {name: 0 if found is None else found["pairs"] for name, found in pairs.items()}
    head = [
        "the demo",
        f"fp32, mean of {len(by_name.get('fp32', []))} seeds, their deviation",
        f"paper's combination, {counts['paper']} pairs",
        f"half weights to nearest (control), {counts['nearest']} pairs",
    ]
    lines = []
    for metric, told in DEMO.items():
        found = [compare(rows, name, metric) for name in ("paper", "nearest")]
        lines.append([told, _of_seeds(found[0], metric), *(_apart(one, metric) for one in found)])
    return markdown(head, lines)


def _of_seeds(found: Row | None, metric: str) -> str:
    if found is None:
        return NOT_MEASURED
    if metric.startswith("recall"):
        return f"{found['mean']:.1%}, {100 * found['deviation']:.1f}"
    return f"{found['mean']:.4f}, {found['deviation']:.3f}"


def _apart(found: Row | None, metric: str) -> str:
    if found is None:
        return NOT_MEASURED
    if metric.startswith("recall"):
        return f"{100 * found['difference']:+.1f} ± {100 * found['interval']:.1f} points"
    return f"{found['difference']:+.4f} ± {found['interval']:.4f}"


def adamw() -> str:
    """A step by optimizer, on all lists of parameters."""
    return by_machine(read_runs("adamw"), _adamw)


def _adamw(runs: Sequence[Run]) -> str:
    lists = (FLAT, *MODELS)
    head = ["optimizer", "bytes per parameter moved", "state bytes", f"ms {', '.join(lists)}"]
    head += ["of copy", "faster than torch fused", f"µs per tensor, {SMALL}"]
    lines = []
    for case in (case for run in runs for case in run.cases("contender")):
        rows = [case.find(list=name) for name in lists]
        first = case.rows[0]
        lines.append(
            [
                first["name"] + (f" {first['version']}" if first["version"] else ""),
                f"{first['bytes_moved'] / first['elements']:.1f}",
                f"{first['state_bytes_per_parameter']:.2f}",
                ", ".join(_cell(row, "median_ms", "{:,.0f}") for row in rows),
                ", ".join(_cell(row, "of_copy", "{:.0%}") for row in rows),
                ", ".join(ratio(None if r is None else r["times_torch_fused"]) for r in rows),
                _cell(case.find(list=SMALL), "us_per_tensor", "{:.2f}"),
            ]
        )
    return markdown(head, lines)


def _cell(row: Row | None, key: str, form: str) -> str:
    return NOT_MEASURED if row is None else form.format(row[key])
