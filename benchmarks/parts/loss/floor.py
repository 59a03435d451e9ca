"""The floor of the loss: its bare matrix products, timed in the same run."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.parts.common import harness
from benchmarks.parts.common.products import Multiply, multipliers
from benchmarks.parts.loss.fit import free_bytes
from benchmarks.parts.loss.peers import ROUNDING
from benchmarks.parts.loss.problem import Case, Features


def measure_floors(
    case: Case,
    features: Features,
    runs: int,
    warmup: int,
    tick: Callable[[], None],
    fields: dict[str, object],
) -> list[harness.Row]:
    """Time the bare matrix products of the loss: three make 6BGD FLOP, the logits twice 8BGD.

    With X this rank's ``[B, D]``, Y ``[G, D]`` and P ``[B, G]``: X Y^T, P Y and P^T X. Where P
    takes over a quarter of the free memory, a strip of its rows is timed and the time scaled to all
    of them. The floor is the fastest of what is here: of all libraries, and on a CPU, whose float32
    may be faster than its half precision, of both types.
    """
    fastest: list[harness.Row] = []
    for dtype, name in floor_candidates(case):
        multiply = multipliers(dtype, case.device)[name]
        rows = _time_products(case, features, runs, warmup, tick, dtype, multiply, fields)
        for row in rows:
            row["floor_library"] = name
        if not fastest or rows[0]["median_ms"] < fastest[0]["median_ms"]:
            fastest = rows
    return fastest


def floor_candidates(case: Case) -> list[tuple[torch.dtype, str]]:
    """The types and libraries whose products are timed; the fastest is the floor."""
    return [
        (dtype, name) for dtype in floor_dtypes(case) for name in multipliers(dtype, case.device)
    ]


def floor_dtypes(case: Case) -> list[torch.dtype]:
    """The types whose products are timed; the faster is the floor."""
    is_cpu = case.device.type == "cpu"
    return list(dict.fromkeys([case.dtype, torch.float32])) if is_cpu else [case.dtype]


def _time_products(
    case: Case,
    features: Features,
    runs: int,
    warmup: int,
    tick: Callable[[], None],
    dtype: torch.dtype,
    multiply: Multiply,
    fields: dict[str, object],
) -> list[harness.Row]:
    x = torch.nn.functional.normalize(features.images.detach().float(), dim=1).to(dtype)
    # Over ranks the other side is as long as the whole batch; its values do not matter.
    y = x.repeat(case.world_size, 1)
    free = free_bytes(case.device) or 2**33
    strip = min(len(x), max(1, free // (4 * case.world_size * case.batch * dtype.itemsize)))
    x = x[:strip].contiguous()
    logits = torch.empty(strip, case.batch, dtype=dtype, device=case.device)
    rows_out, columns_out = torch.empty_like(x), torch.empty_like(y)

    def products(logit_passes: int) -> tuple[Tensor, Tensor, Tensor]:
        for _ in range(logit_passes):
            p = multiply(x, y.T, logits)
        return p, multiply(p, y, rows_out), multiply(p.T, x, columns_out)

    def check() -> None:
        p, by_rows, by_columns = products(1)
        limit = 64 * ROUNDING[dtype]
        expected = x[:8].double() @ y.double().T
        assert _error(p[:8], expected) < limit, "X Y^T"
        assert _error(by_rows[:8], p[:8].double() @ y.double()) < limit, "P Y"
        assert _error(by_columns[:8], p[:, :8].double().T @ x.double()) < limit, "P^T X"

    rows = harness.measure_together(
        {"floor 6BGD": lambda: products(1), "floor 8BGD": lambda: products(2)},
        check=check,
        device=case.device,
        warmup=warmup,
        runs=runs,
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


def set_floor_ratios(rows: list[harness.Row]) -> None:
    """Set our rows in ratio to the floor that they name."""
    median_ms = {row["name"]: row["median_ms"] for row in rows}
    for row in rows:
        if "floor" in row:
            row["ratio_to_floor"] = row["median_ms"] / median_ms[row["floor"]]
