"""A plan for this CPU beside a run of it: a few steps in processes of their own."""

import resource
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist

from clipfast.engine.launch import Process, keep_freed_memory, start
from clipfast.engine.plan import RunPlan
from clipfast.engine.rank_bytes import rank_bytes
from clipfast.plan.measured import CLOCKS, ClockName, MeasuredRates, measure
from clipfast.plan.memory import choose_mode
from clipfast.plan.planning import step_seconds
from clipfast.plan.question import Question, decided
from clipfast.plan.ranks import on_ranks
from clipfast.plan.text import seconds, size, table

# The first steps make states, choose libraries and fill caches.
_WARM, _TIMED = 2, 5


@dataclass(frozen=True)
class Check:
    """What was planned and what came.

    Attributes:
        question: what was planned.
        plan: the run's decisions.
        planned_seconds, measured_seconds: of a step; processor time where that is the clock.
        planned_bytes, measured_bytes: of a rank's process at its peak.
    """

    question: Question
    plan: RunPlan
    planned_seconds: float
    measured_seconds: float
    planned_bytes: int
    measured_bytes: int

    @property
    def time_ratio(self) -> float:
        """Planned by measured."""
        return self.planned_seconds / self.measured_seconds

    @property
    def memory_ratio(self) -> float:
        """Planned by measured."""
        return self.planned_bytes / self.measured_bytes


def check(question: Question, clock: ClockName = "wall") -> Check:
    """Plan a run for this CPU from what its operators take, and take some steps of it.

    Args:
        question: a run on random pairs, so that no decoder takes part.
        clock: "cpu" counts processor time: on a machine that others use too it is the one to go by.

    Raises:
        RuntimeError: a rank failed.
        ValueError: the run reads shards.
    """
    if question.config.data.synthetic is None:
        raise ValueError("a check trains on random pairs: pass --data.train synthetic")
    plan = choose_mode(question, decided(question)[0])
    rates = MeasuredRates(measure(plan, clock))
    need = rank_bytes(plan, question.caption_tokens)
    planned = step_seconds(question, plan, rates)
    times, peaks = zip(*on_ranks(plan.process, _train, plan, clock), strict=True)
    return Check(
        question,
        plan,
        planned,
        max(times),
        rates.process + need.total,
        max(peaks),
    )


def check_table(checks: Sequence[Check], clock: ClockName) -> list[str]:
    """Planned, measured and their ratio.

    Args:
        checks: of this machine.
        clock: that timed them.
    """
    rows = [
        [
            _words(each.plan),
            seconds(each.planned_seconds),
            seconds(each.measured_seconds),
            f"{each.time_ratio:.2f}",
            size(each.planned_bytes),
            size(each.measured_bytes),
            f"{each.memory_ratio:.2f}",
        ]
        for each in checks
    ]
    step = "step" if clock == "wall" else "processor time of a step"
    head = ["run", f"{step}, planned", "measured", "ratio", "memory of a rank, planned"]
    return table([*head, "measured", "ratio"], rows)


def _words(plan: RunPlan) -> str:
    ranks, cut = plan.process.world_size, plan.micro_batches > 1
    return (
        f"{plan.config.model.name}, {ranks} x {plan.local_batch}"
        + (f" in {plan.micro_batch}s" if cut else "")
        + f", ZeRO {plan.stage}, recompute {plan.recompute}"
    )


def _train(process: Process, plan: RunPlan, clock: ClockName) -> tuple[float, int]:
    """Seconds of a step, and the process's peak in bytes."""
    from clipfast.data import ImageTextBatch
    from clipfast.engine.builders import Builders
    from clipfast.engine.deepspeed.wrap import set_learning_rate
    from clipfast.engine.step import train_step

    start(process)
    plan = replace(plan, process=process)
    builders = Builders()
    torch.manual_seed(plan.config.seed)
    loader = builders.loader(plan)
    engine = builders.build_engine(plan)
    keep_freed_memory()
    engine.train()
    set_learning_rate(engine, plan.config.optimizer.lr)
    batches: Iterator[ImageTextBatch] = iter(loader)
    now, times = CLOCKS[clock], []
    for _ in range(_WARM + _TIMED):
        before = now()
        loss, _ = train_step(engine, next(batches), plan.micro_batches, plan.objective)
        times.append(now() - before)
        assert loss.isfinite(), "a step's loss is no number: its time means nothing"
    dist.barrier()
    dist.destroy_process_group()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return statistics.median(times[_WARM:]), peak
