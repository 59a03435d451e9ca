"""Collectives between the ranks: that they are right, how fast, and what hides behind products."""

from collections.abc import Callable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from clipfast.doctor.check import Check, Seen
from clipfast.doctor.checks.ceilings import seconds_of
from clipfast.doctor.checks.group import needs_group
from clipfast.doctor.finding import Finding, ok, size, warning
from clipfast.doctor.situation import Situation

# Features of a batch, a bucket of gradients, the gradients of a large model.
_GPU_BYTES = (1 << 20, 32 << 20, 512 << 20)
_CPU_BYTES = (64 << 10, 1 << 20, 16 << 20)
_LEAST_OVERLAP = 0.3


def terms(situation: Situation) -> Seen:
    """Sizes, which all ranks have to share."""
    return needs_group(situation) or {"sizes": _sizes(situation)}


def look(situation: Situation) -> Seen:
    """Values first, then times, each rank's own."""
    if situation.process.world_size == 1:
        return {"rows": [], "overlap": None}
    rows = []
    for count in _sizes(situation):
        for name, call in _collectives(situation, count // 4).items():
            seconds = _shared_seconds(call, situation)
            rows.append({"name": name, "bytes": count, "seconds": seconds})
    return {"rows": rows, "overlap": _overlap(situation) if situation.on_gpu else None}


def judge(situation: Situation, seen: Mapping[int, Seen]) -> list[Finding]:
    """Bandwidths, and whether collectives hide behind products."""
    first = next(iter(seen.values()))
    if not first["rows"]:
        return [ok("one process: nothing to exchange")]
    ranks = situation.process.world_size
    parts: dict[str, list[str]] = {}
    for i, row in enumerate(first["rows"]):
        slowest = max(each["rows"][i]["seconds"] for each in seen.values())
        # Bytes that cross each rank's link: all of them but its own part, twice for a sum to all.
        factor = (2 if row["name"] == "all_reduce" else 1) * (ranks - 1) / ranks
        rate = size(row["bytes"] * factor / slowest)
        parts.setdefault(row["name"], []).append(f"{size(row['bytes'])} {rate}/s")
    found = [ok(f"{name}: {', '.join(each)}") for name, each in parts.items()]
    overlaps = {rank: each["overlap"] for rank, each in seen.items() if each["overlap"] is not None}
    if not overlaps:
        text = "overlap with products: not measured, clipfast waits for collectives on a CPU"
        return [*found, ok(text)]
    poor = [rank for rank, share in overlaps.items() if share < _LEAST_OVERLAP]
    least = min(overlaps.values())
    if poor:
        found.append(
            warning(
                f"{least:.0%} of an all_reduce hides behind products",
                "unset CUDA_DEVICE_MAX_CONNECTIONS; look at NCCL_MAX_CTAS and whether another "
                "program is on the GPU",
                poor,
            )
        )
    else:
        found.append(ok(f"{least:.0%} or more of an all_reduce hides behind products"))
    return found


def _sizes(situation: Situation) -> list[int]:
    ranks = situation.process.world_size
    sizes = _GPU_BYTES if situation.on_gpu else _CPU_BYTES
    return [4 * ranks * (count // (4 * ranks)) for count in sizes]


def _collectives(situation: Situation, count: int) -> dict[str, Callable[[], object]]:
    """Each checked once: what it gives for values that tell ranks and places apart."""
    device, rank, ranks = situation.device, situation.process.rank, situation.process.world_size
    part = count // ranks
    places = torch.arange(count, device=device, dtype=torch.float32) % 1000
    # Sums of small whole numbers are exact.
    total = places * ranks + ranks * (ranks - 1) / 2
    mine, shard = places + rank, torch.empty(part, device=device)
    whole = torch.empty(count, device=device)
    reduced = mine.clone()
    dist.all_reduce(reduced)
    _require(reduced, total, "all_reduce")
    dist.all_gather_into_tensor(whole, mine[:part].contiguous())
    parts = [places[:part] + each for each in range(ranks)]
    _require(whole, torch.cat(parts), "all_gather")
    dist.reduce_scatter_tensor(shard, mine)
    _require(shard, total[rank * part : (rank + 1) * part], "reduce_scatter")
    # Zeros stay zeros, however often they are added.
    zeros = torch.zeros(count, device=device)
    return {
        "all_reduce": lambda: dist.all_reduce(zeros),
        "all_gather": lambda: dist.all_gather_into_tensor(whole, shard),
        "reduce_scatter": lambda: dist.reduce_scatter_tensor(shard, mine),
    }


def _require(found: Tensor, wanted: Tensor, name: str) -> None:
    wrong = int((found != wanted).sum().item())
    assert not wrong, f"{name} gives {wrong} wrong values of {wanted.numel()}"


def _shared_seconds(call: Callable[[], object], situation: Situation, repeats: int = 5) -> float:
    """The time of a call that every rank makes equally often."""

    def several() -> None:
        for _ in range(repeats):
            call()

    several()
    # A budget of no time: the least number of measurements, the same on all ranks.
    return seconds_of(several, situation.device, budget=0.0) / repeats


def _overlap(situation: Situation) -> float:
    """The share of the shorter of two that is hidden: products of about a collective's time."""
    device = situation.device
    data = torch.zeros(_GPU_BYTES[-1] // 4, device=device)
    a = torch.randn(8192, 8192, device=device, dtype=torch.bfloat16)
    exchanged = _shared_seconds(lambda: dist.all_reduce(data), situation, 2)
    product = _shared_seconds(lambda: torch.mm(a, a), situation, 2)
    ratio = torch.tensor(exchanged / product, device=device)
    dist.all_reduce(ratio, op=dist.ReduceOp.MAX)
    count = max(1, round(ratio.item()))

    def both() -> None:
        work = dist.all_reduce(data, async_op=True)
        for _ in range(count):
            torch.mm(a, a)
        work.wait()

    together = _shared_seconds(both, situation, 2)
    alone = exchanged + count * product
    return max(0.0, min(1.0, (alone - together) / min(exchanged, count * product)))


COLLECTIVES = Check("collectives", look, judge, limit=60, terms=terms)
