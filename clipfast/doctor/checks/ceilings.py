"""What this device can do at most: products per second, bytes copied per second."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch

from clipfast.doctor.check import Check, Seen
from clipfast.doctor.finding import Finding, ok, warning
from clipfast.doctor.situation import Situation

_SLOW = 0.8


def look(situation: Situation) -> Seen:
    """Rate of a square product in the run's type, and of a copy."""
    device = situation.device
    dtype = situation.plan.dtype if situation.plan else torch.float32
    side = 8192 if situation.on_gpu else 1024
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    check_product(a, b)
    product = seconds_of(lambda: torch.mm(a, b), device)
    source = torch.empty(
        (1 << 30) if situation.on_gpu else (64 << 20), dtype=torch.uint8, device=device
    )
    source.random_()
    target = torch.zeros_like(source)
    copy = seconds_of(lambda: target.copy_(source), device)
    assert torch.equal(source, target), "a copy differs from what was copied"
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "side": side,
        "flop_per_second": 2 * side**3 / product,
        # Read once, written once.
        "bytes_per_second": 2 * source.numel() / copy,
        "device": torch.cuda.get_device_name(device) if situation.on_gpu else "cpu",
    }


def check_product(a: torch.Tensor, b: torch.Tensor) -> None:
    """One row of the product against float64, before its time is taken.

    Raises:
        AssertionError: it is wrong.
    """
    row = torch.mm(a, b)[0].double()
    truth = a[:1].double() @ b.double()
    error = ((row - truth[0]).abs().max() / truth.abs().max()).item()
    assert error < 0.02, f"a matrix product is off by {error:.1%}: the device computes wrongly"


def seconds_of(call: Callable[[], object], device: torch.device, budget: float = 0.5) -> float:
    """The median time of a call.

    Args:
        call: works on the device.
        device: waited for.
        budget: seconds to spend.
    """
    call()
    synchronize(device)
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 3 or (time.perf_counter() - began < budget and len(times) < 50):
        before = time.perf_counter()
        call()
        synchronize(device)
        times.append(time.perf_counter() - before)
    return statistics.median(times)


def synchronize(device: torch.device) -> None:
    """Wait for a GPU; a CPU has done it by then."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def judge(situation: Situation, seen: Mapping[int, Seen]) -> list[Finding]:
    """A rank that is slower than the others holds all of them up."""
    found = []
    for name, what in (("flop_per_second", "multiplies"), ("bytes_per_second", "copies")):
        rates = {rank: each[name] for rank, each in seen.items()}
        middle = statistics.median(rates.values())
        slow = [rank for rank, rate in rates.items() if rate < _SLOW * middle]
        if slow:
            worst = min(rates[rank] for rank in slow) / middle
            found.append(
                warning(
                    f"{what} at {worst:.0%} of the ranks' median",
                    "Every step waits for the slowest: look for another program on it, for heat "
                    "(nvidia-smi -q -d CLOCK,PERFORMANCE), for fewer cores",
                    slow,
                )
            )
    flop = [each["flop_per_second"] for each in seen.values()]
    copied = [each["bytes_per_second"] for each in seen.values()]
    first = next(iter(seen.values()))
    text = (
        f"{first['dtype']} product of side {first['side']}: {_range(flop, 1e12)} TFLOP/s; copy "
        f"{_range(copied, 1e9)} GB/s, all ranks at once"
    )
    return [*found, ok(text)]


def _range(values: list[float], unit: float) -> str:
    low, high = min(values) / unit, max(values) / unit
    return f"{low:.3g}" if len(values) == 1 else f"{low:.3g} to {high:.3g}"


CEILINGS = Check("ceilings", look, judge, limit=30)
