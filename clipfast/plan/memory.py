"""What a rank may take of its machine, what it needs, and what would fit where it does not."""

from dataclasses import dataclass, replace
from functools import cache

import torch

from clipfast.engine.config import ConfigError, ZeroConfig
from clipfast.engine.plan import RunPlan, decide
from clipfast.engine.rank_bytes import RankBytes, largest_micro_batch, rank_bytes
from clipfast.engine.recomputation import (
    COMPILED_GROWTH,
    HOLES,
    MARGIN,
    SLACK,
    fastest_that_fits,
    free_bytes,
    has_holes,
    peak_beside_gradients,
)
from clipfast.models import Architecture
from clipfast.models.activations import ActivationBytes, activation_bytes
from clipfast.plan.machines import MACHINES, Machine
from clipfast.plan.question import Question, decided, on_machine

# Of CUDA and NCCL before the first tensor.
CONTEXT = 1_000_000_000
# Micro-batches that are counted. Activations at their peak are the largest of several lines in the
# number of pairs, so that a chord between two counts lies on or above them.
_COUNTED = (1, 32, 128)


@dataclass(frozen=True)
class Mode:
    """One mode of recomputation at the run's micro-batch.

    Attributes:
        plan: in this mode.
        need: of a rank.
        largest: the largest micro-batch that fits; None where one pair is too much.
    """

    plan: RunPlan
    need: RankBytes
    largest: int | None


@dataclass(frozen=True)
class Memory:
    """What a rank may take and needs.

    Attributes:
        available: bytes.
        plan: of the run, its mode of recomputation chosen as the run chooses it.
        need: of that plan.
        modes: every mode that the run may take.
        stages: for every ZeRO stage, what a rank needs of it, in the plan's mode.
        cards: names of the other cards on which the plan fits as it is.
    """

    available: int
    plan: RunPlan
    need: RankBytes
    modes: tuple[Mode, ...]
    stages: dict[int, int]
    cards: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether the run stays within its memory."""
        return self.need.total <= self.available

    @property
    def chosen(self) -> Mode:
        """The plan's own mode."""
        return next(mode for mode in self.modes if mode.plan.recompute == self.plan.recompute)


def available_bytes(machine: Machine, plan: RunPlan) -> int:
    """Bytes that a rank may take, with the margin that a run leaves."""
    free = machine.gpu.memory - CONTEXT if machine.gpu else free_bytes(plan.process)
    return int((free - SLACK) * (1 - MARGIN))


def linear_peak(plan: RunPlan, caption_tokens: int) -> int:
    """`activation_peak` from few counts, however many micro-batches are asked for, and not below
    it. Beyond the largest one counted it grows by the pair."""
    batch = plan.micro_batch
    high = next((size for size in _COUNTED if size >= batch), _COUNTED[-1])
    low = _COUNTED[max(0, _COUNTED.index(high) - 1)]
    # Both halves have the same bytes: counted once.
    dtype = torch.bfloat16 if plan.dtype == torch.float16 else plan.dtype
    counts = {
        size: peak_beside_gradients(
            plan, _counted(plan.architecture, size, dtype, plan.recompute, caption_tokens)
        )
        for size in (low, high)
    }
    slope = (counts[high] - counts[low]) / max(1, high - low)
    peak = counts[low] + slope * (batch - low)
    return int(peak * (COMPILED_GROWTH if plan.compile else 1))


@cache
def _counted(
    architecture: Architecture, batch: int, dtype: torch.dtype, mode: str, tokens: int
) -> ActivationBytes:
    return activation_bytes(architecture, batch, dtype, mode, caption_tokens=tokens)


def choose_mode(question: Question, plan: RunPlan) -> RunPlan:
    """The plan in the mode of recomputation that the run would choose.

    Args:
        question: what is planned.
        plan: of the run.
    """
    if plan.recompute != "auto":
        return plan
    with on_machine(question.machine):
        beside = rank_bytes(plan.with_recompute("none"), question.caption_tokens, count=_nothing)
    room = available_bytes(question.machine, plan) - beside.total
    if has_holes(plan):
        room = int(room / (1 + HOLES))
    return fastest_that_fits(plan, room, question.caption_tokens, linear_peak)


def memory(question: Question, plan: RunPlan, process: int = 0) -> Memory:
    """What a rank needs, in every mode and at every stage.

    Args:
        question: what is planned.
        plan: as `choose_mode` returns it.
        process: bytes of programs and libraries, where they were measured.
    """
    tokens, most = question.caption_tokens, available_bytes(question.machine, plan)
    with on_machine(question.machine):
        asked = replace(plan, recompute="auto").recompute_candidates()
        modes = tuple(
            Mode(
                each,
                replace(rank_bytes(each, tokens, count=linear_peak), process=process),
                largest_micro_batch(each, most - process, tokens, linear_peak),
            )
            for each in asked
        )
        need = replace(rank_bytes(plan, tokens, count=linear_peak), process=process)
        stages = {}
        for stage in (0, 1, 2, 3):
            other = _at_stage(plan, stage)
            if other is not None:
                counted = rank_bytes(other, tokens, count=linear_peak)
                stages[stage] = counted.total + process
    return Memory(most, plan, need, modes, stages, _cards(question, plan.recompute))


def _nothing(plan: RunPlan, caption_tokens: int) -> int:
    return 0


def _at_stage(plan: RunPlan, stage: int) -> RunPlan | None:
    """The plan at another stage; None where the options refuse it."""
    zero = ZeroConfig(stage)  # type: ignore[arg-type]
    try:
        made = decide(replace(plan.config, zero=zero), plan.process)
        return made.with_recompute(plan.recompute)
    except ConfigError:
        return None


def _cards(question: Question, mode: str) -> tuple[str, ...]:
    """Cards that hold the run in this mode, in as many GPUs."""
    found = []
    for name, machine in MACHINES.items():
        if question.machine.gpu is None or machine == question.machine:
            continue
        other = replace(question, machine=machine)
        try:
            plan = decided(other)[0].with_recompute(mode)
        except ConfigError:
            continue
        with on_machine(machine):
            need = rank_bytes(plan, question.caption_tokens, count=linear_peak).total
        if need <= available_bytes(machine, plan):
            found.append(name)
    return tuple(found)
