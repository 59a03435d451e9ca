"""Check both probes against each other, then time them in alternation."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.parts.common.harness import CheckFailed, Row
from benchmarks.parts.probe.contenders import Outcome, run_clipfast, run_sklearn, sklearn_name
from benchmarks.parts.probe.problem import Problem

POINT = 0.001  # 0.1 point of accuracy


def check(ours: Outcome, theirs: Outcome) -> None:
    """Both are as good on the test rows, and none of our fits stopped before it had converged.

    Args:
        ours: clipfast's.
        theirs: scikit-learn's.

    Raises:
        CheckFailed: says which figures differ.
    """
    if abs(ours.accuracy - theirs.accuracy) > POINT + 1e-9:
        raise CheckFailed(
            f"accuracy {ours.accuracy:.4f} (lambda {ours.strength:.3g}) and {theirs.accuracy:.4f} "
            f"(lambda {theirs.strength:.3g}) differ by more than 0.1 point"
        )
    if ours.late:
        raise CheckFailed(f"{ours.late} fits of clipfast did not converge")


def measure_both(problem: Problem, device: torch.device, runs: int) -> list[Row]:
    """Time whole probes, ours and scikit-learn's, one after the other, ``runs`` times.

    On a CPU the clock is the process's user time, which other programs do not lengthen: use one
    thread, since waiting threads spin. On a GPU it is the wall's.

    Args:
        problem: the splits.
        device: where our products run.
        runs: timed runs of each.

    Raises:
        CheckFailed: see ``check``.
    """
    contenders: dict[str, Callable[[], Outcome]] = {
        "clipfast": lambda: run_clipfast(problem, device),
        sklearn_name(): lambda: run_sklearn(problem),
    }
    is_cpu = device.type == "cpu"
    clock = _user_time if is_cpu else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    outcomes: dict[str, Outcome] = {}
    for number in range(runs):
        for name, run in contenders.items():
            begin = clock()
            outcomes[name] = run()
            seconds[name].append(clock() - begin)
        # A probe of this size may take an hour: the first run of each is checked and timed at once.
        if number == 0:
            check(*outcomes.values())
    rows = []
    for name, outcome in outcomes.items():
        spread = torch.tensor(seconds[name], dtype=torch.float64)
        row: Row = {
            "name": name,
            "checked": True,
            "device": str(device),
            "runs": runs,
            "launch": "eager",
            "clock": "user CPU" if is_cpu else "wall",
            "threads": torch.get_num_threads(),
            **{
                key: 1e3 * float(spread.quantile(at))
                for key, at in (("p20_ms", 0.2), ("median_ms", 0.5), ("p80_ms", 0.8))
            },
            "accuracy": outcome.accuracy,
            "lambda": outcome.strength,
            "fits": len(outcome.scores) + 1,
            "fits_not_converged": outcome.late,
        }
        if name != "clipfast":
            pairs = zip(seconds["clipfast"], seconds[name], strict=True)
            row["ratio_to_clipfast"] = statistics.median(theirs / ours for ours, theirs in pairs)
        rows.append(row)
    return rows


def _user_time() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_utime
