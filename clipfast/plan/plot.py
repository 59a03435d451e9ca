"""A run over numbers of GPUs: how long, how many GPU-hours, how much of it waiting."""

from dataclasses import dataclass, replace
from pathlib import Path

from clipfast.engine.config import ConfigError
from clipfast.engine.plan import RunPlan
from clipfast.engine.rank_bytes import largest_micro_batch, rank_bytes
from clipfast.plan.memory import available_bytes, choose_mode, linear_peak
from clipfast.plan.planning import Planned, plan_decided
from clipfast.plan.question import Question, decided, on_machine

SIZES = tuple(2**n for n in range(13))


@dataclass(frozen=True)
class Point:
    """One number of GPUs.

    Attributes:
        gpus: how many.
        planned: the run on them, in the largest micro-batch that fits; None where none does.
    """

    gpus: int
    planned: Planned | None


def sweep(question: Question, sizes: tuple[int, ...] = SIZES) -> list[Point]:
    """The run on each number of GPUs that its batch can be divided among.

    Args:
        question: the run; its own number of GPUs does not matter.
        sizes: numbers of GPUs.
    """
    points = []
    for gpus in sizes:
        if gpus > question.config.batch_size:
            break
        points.append(Point(gpus, _fitting(replace(question, gpus=gpus))))
    return points


def _fitting(question: Question) -> Planned | None:
    # A micro-batch that was asked for may not divide the share of another number of ranks.
    whole = replace(question, config=replace(question.config, micro_batch=None))
    try:
        plan = choose_mode(whole, decided(whole)[0])
        size = _largest(whole, plan)
        return None if size is None else plan_decided(whole, plan.with_micro_batch(size))
    except ConfigError:
        return None


def _largest(question: Question, plan: RunPlan) -> int | None:
    most, tokens = available_bytes(question.machine, plan), question.caption_tokens
    with on_machine(question.machine):
        if rank_bytes(plan, tokens, count=linear_peak).total <= most:
            return plan.micro_batch
        return largest_micro_batch(plan, most, tokens, linear_peak)


def plot(points: list[Point], path: str | Path) -> None:
    """Draw run time, GPU-hours and what a step waits for against the number of GPUs.

    Args:
        points: of `sweep`.
        path: of the picture.
    """
    from matplotlib.figure import Figure

    done = [(point.gpus, point.planned) for point in points if point.planned is not None]
    gpus = [each for each, _ in done]
    panels = {
        "run, days": [planned.run_seconds / 86_400 for _, planned in done],
        "GPU-hours": [planned.gpu_hours for _, planned in done],
        "waiting for other ranks, share of a step": [
            planned.time.exposed / planned.time.seconds for _, planned in done
        ],
        "pairs that a rank encodes at a time": [planned.plan.micro_batch for _, planned in done],
    }
    figure = Figure(figsize=(13, 7), dpi=110, layout="constrained")
    for (title, values), axis in zip(panels.items(), figure.subplots(2, 2).flat, strict=True):
        axis.plot(gpus, values, marker="o", markersize=4)
        axis.set_xscale("log", base=2)
        axis.set(title=title, xlabel="GPUs")
        if title.startswith(("run", "pairs")):
            axis.set_yscale("log")
        axis.set_ylim(bottom=0 if axis.get_yscale() == "linear" else None)
        axis.grid(alpha=0.3)
    if done:
        question = done[0][1].question
        figure.suptitle(
            f"{question.config.model.name} on {question.machine.name}, towers at "
            f"{question.utilisation:.0%} of the peak"
        )
    figure.savefig(path)
