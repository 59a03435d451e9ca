"""This CPU's rates, measured before a plan for it: in as many processes as the run has ranks, at
the same time, since they share its cores and its memory."""

import contextlib
import ctypes
import gc
import resource
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist

from clipfast.data.random_pairs import generator_of, random_captions
from clipfast.engine.builders import build_loader
from clipfast.engine.launch import Process, keep_freed_memory, start
from clipfast.engine.plan import RunPlan
from clipfast.engine.state_bytes import StateBytes
from clipfast.loss.traffic import Transfer
from clipfast.models import CLIP, num_parameters
from clipfast.plan.ranks import on_ranks
from clipfast.plan.replay import (
    Clock,
    PassSeconds,
    bytes_per_second,
    loss_seconds,
    replay,
    seconds_of,
    update_seconds,
)

ClockName = Literal["wall", "cpu"]
CLOCKS: dict[ClockName, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
_SMALL, _LARGE = 1_000, 4_000_000  # elements of a collective


@dataclass(frozen=True)
class Measured:
    """What was measured on one rank.

    Attributes:
        towers: seconds of a micro-batch's passes.
        loss: seconds of the loss and its gradients.
        data: seconds that a micro-batch's images take to be made, where they are made at random.
        update: seconds that the optimizer takes for a parameter.
        bandwidth: bytes/s of a copy, read and written.
        collectives: seconds of a small one, and seconds a byte sent, by kind.
        process: bytes that a rank holds of libraries, with what they keep of all operators.
    """

    towers: PassSeconds
    loss: float
    data: float
    update: float
    bandwidth: float
    collectives: dict[str, tuple[float, float]]
    process: int


class MeasuredRates:
    """A CPU, at what was measured of its operators. See `Rates`.

    Args:
        measured: with the plan that is asked about.
    """

    def __init__(self, measured: Measured) -> None:
        self.measured = measured

    @property
    def process(self) -> int:
        """See `Rates`."""
        return self.measured.process

    def compute(self, plan: RunPlan, caption_tokens: int, states: StateBytes) -> dict[str, float]:
        """See `Rates`."""
        found, k = self.measured, plan.micro_batches
        towers = found.towers
        parts = {
            "text forward": k * towers.text_forward,
            "image forward": k * towers.image_forward,
        }
        passes = 1
        if k > 1:
            parts["features, without a graph"] = sum(parts.values())
            passes = 2
        parts["loss"] = found.loss
        parts["image backward"] = k * towers.image_backward
        parts["text backward"] = k * towers.text_backward
        with torch.device("meta"):
            parameters = num_parameters(CLIP(plan.architecture))
        share = plan.process.world_size if plan.stage else 1
        # DeepSpeed hands over the gradients in the optimizer's type, and takes its copy back.
        copied = 4 * states.passing * (plan.stage > 0)
        parts["optimizer"] = found.update * parameters / share + copied / found.bandwidth
        if found.data:
            parts["images made"] = passes * k * found.data
        return parts

    def travel(self, plan: RunPlan, transfer: Transfer) -> float:
        """See `Rates`."""
        latency, per_byte = self.measured.collectives[transfer.kind]
        return transfer.times * latency + transfer.sent(plan.process.world_size) * per_byte


def measure(plan: RunPlan, clock: ClockName = "wall") -> Measured:
    """Measure this CPU for a plan, in a process for each of its ranks.

    Args:
        plan: of the run, on a CPU, its mode of recomputation known.
        clock: "cpu" leaves out what other programs take.

    Returns:
        The first rank's figures.

    Raises:
        RuntimeError: a rank failed.
    """
    return on_ranks(plan.process, _measure, plan, clock)[0]


def _measure(process: Process, plan: RunPlan, clock: ClockName) -> Measured:
    import clipfast.engine.trainer  # noqa: F401  what a run has loaded by then

    start(process)
    now = CLOCKS[clock]
    keep_freed_memory()
    generators = [generator_of(torch.device("cpu"), process.rank, kind) for kind in range(2)]
    lengths = random_captions(plan.micro_batch, *generators)[1]
    towers = replay(plan, lengths.tolist(), now)
    process_bytes = _libraries_bytes()
    found = Measured(
        towers=towers,
        loss=loss_seconds(plan, now),
        data=_data_seconds(plan, now),
        update=update_seconds(plan, now),
        bandwidth=bytes_per_second(now),
        collectives={} if process.world_size == 1 else _collectives(now, process.world_size),
        process=process_bytes,
    )
    dist.barrier()
    dist.destroy_process_group()
    return found


def _data_seconds(plan: RunPlan, now: Clock) -> float:
    """Of one micro-batch; nothing where shards are read, which other threads do."""
    if plan.config.data.synthetic is None:
        return 0.0
    batches = iter(build_loader(plan))
    parts = next(batches).parts(plan.micro_batches)
    if plan.micro_batches == 1:
        return seconds_of(lambda: next(batches), now)
    return seconds_of(lambda: parts[0], now)


def _collectives(now: Clock, ranks: int) -> dict[str, tuple[float, float]]:
    runs = {
        "all_reduce": lambda x: dist.all_reduce(x),
        "all_gather": lambda x: dist.all_gather_into_tensor(x, x[: len(x) // ranks].clone()),
        "reduce_scatter": lambda x: dist.reduce_scatter_tensor(x[: len(x) // ranks].clone(), x),
    }
    found = {}
    # Their names of torch 2.13 came with it.
    warnings.simplefilter("ignore", FutureWarning)
    for kind, run in runs.items():
        times = []
        for count in (_SMALL, _LARGE):
            x = torch.ones(count // ranks * ranks)
            # As many calls on every rank: a clock must not decide.
            run(x)
            before = now()
            for _ in range(5):
                run(x)
            times.append((now() - before) / 5)
        sent = Transfer("", kind, 4 * _LARGE).sent(ranks)  # type: ignore[arg-type]
        found[kind] = (times[0], max(0.0, times[1] - times[0]) / sent)
    return found


def _libraries_bytes() -> int:
    """What stays when every tensor is gone: programs, and what libraries keep of operators."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
    return resident_bytes()


def resident_bytes() -> int:
    """What this process holds in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
