"""Measures one case of ``loss_throughput.py``: checks all contenders, times those that pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from benchmarks.parts.common import harness
from benchmarks.parts.common.contest import Absence, reason_of
from benchmarks.parts.common.graphs import recorder_of
from benchmarks.parts.loss.fit import require_memory
from benchmarks.parts.loss.floor import floor_candidates, measure_floors, set_floor_ratios
from benchmarks.parts.loss.peers import Contender, our_contenders, peer_contenders
from benchmarks.parts.loss.problem import (
    SAMPLED_ABOVE,
    Case,
    Features,
    Truth,
    loss_and_grads,
    make_features,
    measure_errors,
)
from benchmarks.parts.loss.rivals import sigmoid_truth

MOST_REPLAYED = 8192  # pairs


@dataclass(frozen=True)
class Selection:
    """What to measure in a case: see the options of ``loss_throughput.py``."""

    impls: tuple[str, ...]
    kept: tuple[str, ...]
    peers: tuple[str, ...]
    runs: int
    warmup: int

    def contenders(self, case: Case) -> list[Contender]:
        ours = our_contenders(case, self.impls, self.kept)
        return [*ours, *peer_contenders(case, self.peers)]

    def total_runs(self, case: Case) -> int:
        """Runs of a case, where every contender is timed."""
        functions = 2 * len(floor_candidates(case)) + len(self.contenders(case))
        return (self.runs + self.warmup) * functions


@dataclass(frozen=True)
class _Passed:
    """A contender that is right, what is timed of it, and its errors."""

    contender: Contender
    step: Callable[[], object]
    errors: dict[str, float]


def measure_case(
    case: Case, selection: Selection, truth: Truth, tick: Callable[[], None] = lambda: None
) -> tuple[list[harness.Row], list[Absence]]:
    """Check all contenders on the features that they are then timed on; time those that pass.

    Args:
        case: The size; in a rank of a group, the rank's.
        selection: What to measure.
        truth: About the whole batch.
        tick: Called after each timed or warming run.

    Returns:
        The floors' rows, then one row per contender that passed, and the contenders without one.
    """
    features = make_features(case)
    fields = {
        "batch": case.batch,
        "dim": case.dim,
        "dtype": case.dtype_name,
        "ranks": case.world_size,
        "loss": truth.loss.item(),
    }
    floors = measure_floors(case, features, selection.runs, selection.warmup, tick, fields)
    passed, absent = _check_all(case, selection, features, truth)
    if not passed:
        return floors, absent
    rows = harness.measure_together(
        {name: one.step for name, one in passed.items()},
        check=lambda: True,  # each has passed its own
        device=case.device,
        warmup=selection.warmup,
        runs=selection.runs,
        items=case.batch,
        ratios_to=[name for name, one in passed.items() if one.contender.is_ours],
        after_run=tick,
        record=recorder_of(case.device) if is_replayed(case) else None,
        **fields,
    )
    for row in rows:
        one = passed[row.get("replay_of", row["name"])]
        contender = one.contender
        row.update(one.errors, **dict(contender.fields))
        row["errors_on"] = "a sample of rows" if case.batch > SAMPLED_ABOVE else "all rows"
        if contender.is_ours:
            row["floor"] = f"floor {contender.floor}BGD"
    rows = [*floors, *rows]
    set_floor_ratios(rows)
    return rows, absent


def is_replayed(case: Case) -> bool:
    """Whether replays are timed too: above, the device sets the pace in any case. Over ranks the
    collectives of a replay would have to be captured."""
    return case.batch <= MOST_REPLAYED and case.world_size == 1


def _check_all(
    case: Case, selection: Selection, features: Features, truth: Truth
) -> tuple[dict[str, _Passed], list[Absence]]:
    """What is to be timed, by name; and the contenders that fail or are wrong."""
    passed, absent = {}, []
    for contender in selection.contenders(case):
        reason, found = None, None
        try:
            found = _check(contender, case, features, truth)
        except Exception as error:  # a peer's failure is a line of the report, whatever it is
            reason = reason_of(error)
        # Outside of except: what a traceback holds is not freed there.
        if reason and case.device.type == "cuda":
            torch.cuda.empty_cache()
        if case.world_size > 1:
            # All ranks time a contender, or none does: it waits for the others.
            reasons: list[str | None] = [None] * case.world_size
            dist.all_gather_object(reasons, reason)
            reason = next((told for told in reasons if told), None)
        if reason:
            absent.append(Absence(contender.name, reason, contender.is_ours))
        else:
            passed[contender.name] = found
    return passed, absent


def _check(contender: Contender, case: Case, features: Features, truth: Truth) -> _Passed:
    """Run once and compare.

    Raises:
        CheckFailed: an error is beyond the contender's tolerance.
    """
    require_memory(contender, case)
    loss = contender.build(case)
    if contender.is_sigmoid:
        truth = sigmoid_truth(features, truth.rows)
    errors = measure_errors(loss, features, truth, case)
    if not contender.has_scale_grad:
        del errors["error_scale_grad"]
    worst = {key: value for key, value in errors.items() if not value <= contender.tolerance}
    if worst:
        told = ", ".join(f"{key} {value:.1e}" for key, value in worst.items())
        raise harness.CheckFailed(f"{told}; at most {contender.tolerance:.0e} is right")
    return _Passed(contender, lambda: loss_and_grads(loss, features, case), errors)
