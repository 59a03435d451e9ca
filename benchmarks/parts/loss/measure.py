"""Measures one case of ``loss_throughput.py``, on one process or inside each of several ranks."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from benchmarks.parts.common import harness
from benchmarks.parts.loss.peers import (
    ROUNDING,
    Contender,
    NotMeasured,
    our_contenders,
    peer_contenders,
)
from benchmarks.parts.loss.problem import (
    SAMPLED_ABOVE,
    Case,
    Features,
    Truth,
    compute_truth,
    loss_and_grads,
    make_features,
    measure_errors,
)

TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True)
class Plan:
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
        functions = 2 * len(_floor_dtypes(case)) + len(self.contenders(case))
        return (self.runs + self.warmup) * functions


@dataclass(frozen=True)
class Absence:
    """A contender without a row, and why."""

    name: str
    reason: str
    is_ours: bool


def measure_case(
    case: Case, plan: Plan, truth: Truth, tick: Callable[[], None] = lambda: None
) -> tuple[list[harness.Row], list[Absence]]:
    """Check all contenders on the features that they are then timed on; time those that pass.

    Args:
        case: The size; in a rank of a group, the rank's.
        plan: What to measure.
        truth: About the whole batch.
        tick: Called after each timed or warming run.

    Returns:
        The floors' rows, then a row for each contender that passed; and the contenders without one.
    """
    features = make_features(case)
    fields = {
        "batch": case.batch,
        "dim": case.dim,
        "dtype": case.dtype_name,
        "ranks": case.world_size,
        "loss": truth.loss.item(),
    }
    floors = measure_floors(case, features, plan, tick, fields)
    steps: dict[str, Callable[[], object]] = {}
    errors, passed, absent = {}, {}, []
    for contender in plan.contenders(case):
        name = contender.name
        try:
            steps[name], errors[name] = _checked_step(contender, case, features, truth)
            passed[name] = contender
        except NotMeasured as reason:
            absent.append(Absence(name, str(reason), contender.is_ours))
    if not passed:
        return floors, absent
    rows = harness.measure_together(
        steps,
        check=lambda: steps.keys() == errors.keys(),
        device=case.device,
        warmup=plan.warmup,
        runs=plan.runs,
        items=case.batch,
        ratios_to=[name for name, contender in passed.items() if contender.is_ours],
        after_run=tick,
        **fields,
    )
    for row in rows:
        contender = passed[row["name"]]
        row.update(errors[row["name"]], **dict(contender.fields))
        row["errors_on"] = "a sample of rows" if case.batch > SAMPLED_ABOVE else "all rows"
        if contender.is_ours:
            row["floor"] = f"floor {contender.floor}BGD"
    rows = [*floors, *rows]
    _set_floor_ratios(rows)
    return rows, absent


def _set_floor_ratios(rows: list[harness.Row]) -> None:
    """Set our rows in ratio to the floor that they name."""
    median_ms = {row["name"]: row["median_ms"] for row in rows}
    for row in rows:
        if "floor" in row:
            row["ratio_to_floor"] = row["median_ms"] / median_ms[row["floor"]]


def _checked_step(
    contender: Contender, case: Case, features: Features, truth: Truth
) -> tuple[Callable[[], object], dict[str, float]]:
    """The function to time, and its errors; :class:`NotMeasured` where it fails or is wrong."""
    reason, errors = None, {}
    try:
        _require_memory(contender, case)
        loss = contender.build(case)
        errors = measure_errors(loss, features, truth, case)
    except NotMeasured as error:
        reason = f"not measured: {error}"
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        reason = "not measured: out of memory"
    except Exception as error:  # a peer's failure is a line of the report, whatever it is
        words = str(error).strip().splitlines() or [""]
        reason = f"not measured: {type(error).__name__}: {words[0]}"
    worst = {key: value for key, value in errors.items() if not value <= contender.tolerance}
    if worst:
        told = ", ".join(f"{key} {value:.1e}" for key, value in worst.items())
        reason = f"wrong, so not timed: {told}; at most {contender.tolerance:.0e} is right"
    if case.world_size > 1:
        # All ranks time a contender, or none does: it waits for the others.
        reasons: list[str | None] = [None] * case.world_size
        dist.all_gather_object(reasons, reason)
        reason = next((told for told in reasons if told), None)
    if reason:
        raise NotMeasured(reason)
    return (lambda: loss_and_grads(loss, features, case)), errors


def free_bytes(device: torch.device) -> int | None:
    """Memory that can still be taken, or None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def _require_memory(contender: Contender, case: Case) -> None:
    """Refuse what would not fit: a CPU has no out-of-memory error to catch."""
    free = free_bytes(case.device)
    needed = contender.logit_bytes * case.local_batch * case.batch
    if free is not None and needed * case.world_size > free and case.device.type == "cpu":
        raise NotMeasured(
            f"needs about {needed * case.world_size / 2**30:.0f} GiB, {free / 2**30:.0f} are free"
        )


def measure_floors(
    case: Case,
    features: Features,
    plan: Plan,
    tick: Callable[[], None],
    fields: dict[str, object],
) -> list[harness.Row]:
    """Time the bare matrix products of the loss: three make 6BGD FLOP, the logits twice 8BGD.

    With X this rank's ``[B, D]``, Y ``[G, D]`` and P ``[B, G]``: X Y^T, P Y and P^T X. Where P
    takes over a quarter of the free memory, a strip of its rows is timed and the time scaled to all
    of them. On a CPU, whose float32 may be faster than its half precision, the floor is the faster.
    """
    fastest: list[harness.Row] = []
    for dtype in _floor_dtypes(case):
        rows = _time_products(case, features, plan, tick, dtype, fields)
        if not fastest or rows[0]["median_ms"] < fastest[0]["median_ms"]:
            fastest = rows
    return fastest


def _floor_dtypes(case: Case) -> list[torch.dtype]:
    is_cpu = case.device.type == "cpu"
    return list(dict.fromkeys([case.dtype, torch.float32])) if is_cpu else [case.dtype]


def _time_products(
    case: Case,
    features: Features,
    plan: Plan,
    tick: Callable[[], None],
    dtype: torch.dtype,
    fields: dict[str, object],
) -> list[harness.Row]:
    x = torch.nn.functional.normalize(features.images.detach().float(), dim=1).to(dtype)
    # Over ranks the other side is as long as the whole batch; its values do not matter.
    y = x.repeat(case.world_size, 1)
    free = free_bytes(case.device) or 2**33
    strip = min(len(x), max(1, free // (4 * case.world_size * case.batch * dtype.itemsize)))
    x = x[:strip].contiguous()
    p = torch.empty(strip, case.batch, dtype=dtype, device=case.device)
    rows_out, columns_out = torch.empty_like(x), torch.empty_like(y)

    def products(logit_passes: int) -> None:
        for _ in range(logit_passes):
            torch.mm(x, y.T, out=p)
        torch.mm(p, y, out=rows_out)
        torch.mm(p.T, x, out=columns_out)

    def check() -> None:
        products(1)
        limit = 64 * ROUNDING[dtype]
        expected = x[:8].double() @ y.double().T
        assert _error(p[:8], expected) < limit, "X Y^T"
        assert _error(rows_out[:8], p[:8].double() @ y.double()) < limit, "P Y"
        assert _error(columns_out[:8], p[:, :8].double().T @ x.double()) < limit, "P^T X"

    rows = harness.measure_together(
        {"floor 6BGD": lambda: products(1), "floor 8BGD": lambda: products(2)},
        check=check,
        device=case.device,
        warmup=plan.warmup,
        runs=plan.runs,
        memory=False,
        ratios_to=[],
        after_run=tick,
        **fields,
    )
    for row, flop_bgd in zip(rows, (6, 8), strict=True):
        for key in ("median_ms", "p20_ms", "p80_ms"):
            row[key] *= case.local_batch / strip
        flop = flop_bgd * case.local_batch * case.batch * case.dim
        row.update(flop_bgd=flop_bgd, floor_dtype=str(dtype).removeprefix("torch."))
        row.update(measured_rows=strip, tflops=flop / row["median_ms"] / 1e9)
    return rows


def _error(value: Tensor, truth: Tensor) -> float:
    return ((value.double() - truth).norm() / truth.norm()).item()


def measure_on_ranks(case: Case, plan: Plan) -> tuple[list[harness.Row], list[Absence]]:
    """:func:`measure_case` in ``case.world_size`` processes of this machine.

    Each rank measures the same functions in the same order, so the ranks wait for each other in
    the collectives. The truth is that of one process, computed here.

    Returns:
        As :func:`measure_case`; times and memory are the largest of any rank.
    """
    truth = compute_truth(make_features(replace(case, world_size=1)))
    truth = Truth(**{name: value.cpu() for name, value in vars(truth).items()})
    with tempfile.TemporaryDirectory() as folder:
        torch.save(vars(truth), Path(folder) / "truth.pt")
        mp.spawn(_rank_main, (case, plan, folder), nprocs=case.world_size)
        results = [
            torch.load(Path(folder) / f"{rank}.pt", weights_only=False)
            for rank in range(case.world_size)
        ]
    rows = []
    for ranks in zip(*(rows for rows, _ in results), strict=True):
        row = dict(ranks[0])
        for key in ("median_ms", "p20_ms", "p80_ms", "peak_extra_bytes"):
            row[key] = max((one[key] for one in ranks if one[key] is not None), default=None)
        if "items_per_s" in row:
            row["items_per_s"] = case.batch / (row["median_ms"] / 1e3)
        rows.append({**row, "device": case.device.type})
    _set_floor_ratios(rows)
    return rows, results[0][1]


def _rank_main(rank: int, case: Case, plan: Plan, folder: str) -> None:
    on_gpu = case.device.type == "cuda"
    device = torch.device("cuda", rank) if on_gpu else case.device
    case = replace(case, rank=rank, device=device)
    if not on_gpu:
        torch.set_num_threads(max(1, torch.get_num_threads() // case.world_size))
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=case.world_size,
        timeout=TIMEOUT,
    )
    try:
        with torch.cuda.device(device) if on_gpu else nullcontext():
            truth = torch.load(Path(folder) / "truth.pt", map_location=device)
            torch.save(measure_case(case, plan, Truth(**truth)), Path(folder) / f"{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()
    # About one process in fifty, seen where OpenCLIP ran over gloo, aborts on a thread that is
    # still there as the interpreter ends. The result is written: end without that.
    os._exit(0)
