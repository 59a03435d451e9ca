"""A run planned: its decisions, memory, time, data and bytes on the wire, in one record."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from clipfast.engine.config import ConfigError
from clipfast.engine.length import Length
from clipfast.engine.plan import RunPlan
from clipfast.engine.state_bytes import state_bytes
from clipfast.engine.traffic import bytes_sent, step_traffic
from clipfast.models import CLIP, num_parameters
from clipfast.plan.flop import pair_flop
from clipfast.plan.memory import Memory, choose_mode, memory
from clipfast.plan.question import Question, decided
from clipfast.plan.rates import Rates, StatedRates
from clipfast.plan.supply import Supply, supply
from clipfast.plan.timeline import Timeline, timeline


@dataclass(frozen=True)
class Planned:
    """What is known of a run before it starts.

    Attributes:
        question: what was asked.
        plan: the run's decisions.
        parameters: of the model.
        notes: what had to be changed or chosen.
        length: of the run.
        pair_flop: FLOP of one pair's share of a step, nothing computed twice.
        time: of a step.
        sent: bytes that a rank puts on the wire in a step.
        supply: what the data must give.
        memory: of a rank; None where only time was asked for.
        rates: that the times come from.
    """

    question: Question
    plan: RunPlan
    parameters: int
    notes: tuple[str, ...]
    length: Length
    pair_flop: float
    time: Timeline
    sent: float
    supply: Supply
    memory: Memory | None
    rates: Rates

    @property
    def run_seconds(self) -> float:
        """Of training; evaluations and checkpoints come on top."""
        return self.length.steps * self.time.seconds

    @property
    def epoch_seconds(self) -> float:
        """Of one pass over the data."""
        return self.question.pairs // self.plan.config.batch_size * self.time.seconds

    @property
    def gpu_hours(self) -> float:
        """Of all ranks."""
        return self.run_seconds * self.question.gpus / 3600

    @property
    def reached(self) -> float | None:
        """Model FLOP of the whole step over the cards' peak; None for a CPU."""
        peak = self.question.machine.peak(self.plan)
        flop = self.pair_flop * self.plan.local_batch
        return flop / self.time.seconds / peak if peak else None


def plan_run(question: Question, rates: Rates | None = None) -> Planned:
    """Plan a run, with what every mode of recomputation and every stage needs.

    Args:
        question: the run, and what with.
        rates: of the machine; None takes the stated ones.

    Raises:
        ConfigError: as the run itself would.
    """
    plan, notes = decided(question)
    if question.pairs < plan.config.batch_size:
        raise ConfigError(
            f"{question.pairs} pairs are less than one global batch of {plan.config.batch_size}: "
            "pass --pairs with more, or a smaller --batch-size"
        )
    plan = choose_mode(question, plan)
    if plan.recompute_note:
        notes.append(plan.recompute_note)
    return plan_decided(question, plan, notes, rates, with_memory=True)


def step_seconds(question: Question, plan: RunPlan, rates: Rates | None = None) -> float:
    """How long a step of a plan takes, without the rest of what is known of it."""
    return _time(question, plan, rates or _stated(question, plan), _model(plan)).seconds


def plan_decided(
    question: Question,
    plan: RunPlan,
    notes: Sequence[str] = (),
    rates: Rates | None = None,
    with_memory: bool = False,
) -> Planned:
    """Plan a run whose decisions are taken.

    Args:
        question: the run, and what with.
        plan: the decisions, the mode of recomputation among them.
        notes: on how they came.
        rates: of the machine; None takes the stated ones.
        with_memory: count every mode and stage.
    """
    rates = rates or _stated(question, plan)
    model = _model(plan)
    time = _time(question, plan, rates, model)
    batch = plan.config.batch_size
    return Planned(
        question=question,
        plan=plan,
        parameters=num_parameters(model),
        notes=tuple(notes),
        length=Length.of(plan.config.schedule, question.pairs // batch),
        pair_flop=pair_flop(plan.architecture, question.caption_tokens, batch),
        time=time,
        sent=bytes_sent(step_traffic(plan, model), question.gpus),
        supply=supply(batch, time.seconds, question.kilobytes, question.decoded_per_core),
        memory=memory(question, plan, rates.process) if with_memory else None,
        rates=rates,
    )


def _model(plan: RunPlan) -> CLIP:
    with torch.device("meta"):
        return CLIP(plan.architecture)


def _stated(question: Question, plan: RunPlan) -> Rates:
    if question.machine.peak(plan) is None:
        raise ConfigError(f"{question.machine.name} has no known rate for {plan.dtype}")
    return StatedRates(question.machine, question.utilisation)


def _time(question: Question, plan: RunPlan, rates: Rates, model: CLIP) -> Timeline:
    return timeline(
        rates.compute(plan, question.caption_tokens, state_bytes(plan, model)),
        [(each, rates.travel(plan, each)) for each in step_traffic(plan, model)],
        overlaps=question.machine.gpu is not None,
    )
