"""Measures one case of ``loss_throughput.py`` inside each of several ranks."""

from __future__ import annotations

import os
import tempfile
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.parts.common import harness
from benchmarks.parts.common.contest import Absence
from benchmarks.parts.loss.floor import set_floor_ratios
from benchmarks.parts.loss.measure import Selection, measure_case
from benchmarks.parts.loss.problem import Case, Truth, compute_truth, make_features
from benchmarks.parts.suite.process import end_with_parent

TIMEOUT = timedelta(minutes=10)


def measure_on_ranks(case: Case, selection: Selection) -> tuple[list[harness.Row], list[Absence]]:
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
        mp.spawn(_rank_main, (case, selection, folder), nprocs=case.world_size)
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
    set_floor_ratios(rows)
    return rows, results[0][1]


def _rank_main(rank: int, case: Case, selection: Selection, folder: str) -> None:
    end_with_parent()
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
            torch.save(measure_case(case, selection, Truth(**truth)), Path(folder) / f"{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()
    # About one process in fifty, seen where OpenCLIP ran over gloo, aborts on a thread that is
    # still there as the interpreter ends. The result is written: end without that.
    os._exit(0)
