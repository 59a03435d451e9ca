"""Check both probes against each other, then time them in alternation."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.parts.common.harness import CheckFailed, Row
from benchmarks.parts.probe.contenders import (
    Outcome,
    accuracy_at,
    run_clipfast,
    run_sklearn,
    sklearn_name,
)
from benchmarks.parts.probe.problem import Problem

POINT = 0.001  # 0.1 point of accuracy
# The best of 15 scores on few rows is a little chance: solvers that agree choose neighbours.
VALIDATION_POINTS = 0.005


def check(ours: Outcome, theirs: Outcome, ours_at_theirs: float) -> None:
    """With one lambda both are as good on the test rows; both searches end as high.

    Args:
        ours: clipfast's.
        theirs: scikit-learn's.
        ours_at_theirs: our accuracy on the test rows with the lambda that scikit-learn chose.

    Raises:
        CheckFailed: says which figures differ, or that fits of ours did not converge.
    """
    if abs(ours_at_theirs - theirs.accuracy) > POINT + 1e-9:
        raise CheckFailed(
            f"accuracy {ours_at_theirs:.4f} and {theirs.accuracy:.4f} with lambda "
            f"{theirs.strength:.3g} differ by more than 0.1 point"
        )
    best = [max(outcome.scores.values()) for outcome in (ours, theirs)]
    if abs(best[0] - best[1]) > VALIDATION_POINTS:
        raise CheckFailed(f"the best validation accuracies are {best[0]:.4f} and {best[1]:.4f}")
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
            ours, theirs = outcomes.values()
            check(ours, theirs, accuracy_at(problem, theirs.strength, device))
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
