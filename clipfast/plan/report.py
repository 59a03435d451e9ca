"""A plan as text for a person."""

from collections.abc import Sequence

import torch

from clipfast.plan.memory import Memory
from clipfast.plan.planning import Planned, step_seconds
from clipfast.plan.text import digits, seconds, share, size, table

# Shares of the peak at which a step's time is told beside the stated one.
_SHARES = (0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)

# Parts that only some runs have.
_WHERE_THEY_ARE = (
    "gradients in a row, in place of activations",
    "holes of the heap",
    "process",
)


def report(planned: Planned) -> list[str]:
    """The whole plan.

    Args:
        planned: with its memory.
    """
    lines = [_title(planned), ""]
    lines += [f"- {note}" for note in planned.notes]
    lines += ["" for _ in planned.notes[:1]]
    if planned.memory is not None:
        lines += [*memory_table(planned.memory), "", *_fits(planned, planned.memory), ""]
    lines += [*time_table(planned), "", *travel_table(planned)]
    lines += ["", *_totals(planned)]
    return lines


def _title(planned: Planned) -> str:
    plan, question = planned.plan, planned.question
    cut = f" in {plan.micro_batches} micro-batches" if plan.micro_batches > 1 else ""
    precision = str(plan.dtype).removeprefix("torch.") + (
        ", products as TF32" if plan.uses_tf32 and plan.dtype == torch.float32 else ""
    )
    return (
        f"{plan.config.model.name} ({planned.parameters / 1e6:.1f}M parameters) on "
        f"{question.gpus} x {question.machine.name}: batch {plan.config.batch_size} = "
        f"{question.gpus} ranks x {plan.local_batch}{cut}, {precision}, ZeRO {plan.stage}, "
        f"recompute {plan.recompute}, blocks {'compiled' if plan.compile else 'as they are'}, "
        f"captions of {question.caption_tokens} tokens"
    )


def memory_table(memory: Memory) -> list[str]:
    """Memory of a rank by part, a column for each mode of recomputation.

    Args:
        memory: of a plan.
    """
    needs = [mode.need for mode in memory.modes]
    parts = {
        "weights": [need.states.weights for need in needs],
        "gradients": [need.states.gradients for need in needs],
        "optimizer": [need.states.optimizer for need in needs],
        "buckets and passing": [need.states.passing for need in needs],
        "activations": [need.activations for need in needs],
        "loss": [need.loss for need in needs],
        "features of all micro-batches": [need.features for need in needs],
        "images": [need.images for need in needs],
        "decoder": [need.decoder for need in needs],
        "gradients in a row, in place of activations": [need.flattened for need in needs],
        "holes of the heap": [need.holes for need in needs],
        "process": [need.process for need in needs],
        "needed at the peak": [need.total for need in needs],
        "may be taken": [memory.available] * len(needs),
    }
    rows = [
        [name, *map(size, values)]
        for name, values in parts.items()
        if name not in _WHERE_THEY_ARE or any(values)
    ]
    largest = [str(mode.largest or "none") for mode in memory.modes]
    rows.append(["largest micro-batch", *largest])
    return table(["memory of a rank", *(mode.plan.recompute for mode in memory.modes)], rows)


def _fits(planned: Planned, memory: Memory) -> list[str]:
    plan, lines = planned.plan, []
    word = "fits" if memory.fits else "DOES NOT FIT"
    lines.append(
        f"Micro-batch {plan.micro_batch} with recompute {plan.recompute} at ZeRO {plan.stage} "
        f"{word}: {size(memory.need.total)} of {size(memory.available)}"
    )
    at = [
        f"{stage}: {size(need)}{'' if need <= memory.available else ' (does not fit)'}"
        for stage, need in memory.stages.items()
    ]
    lines.append(f"Needed at each ZeRO stage: {'; '.join(at)}")
    lines.append(f"Fits, {_options(planned, memory)}")
    if planned.question.machine.gpu is not None:
        cards = ", ".join(memory.cards) or "none"
        lines.append(f"Other cards that hold micro-batch {plan.micro_batch} in this mode: {cards}")
    return lines


def _options(planned: Planned, memory: Memory) -> str:
    """Every mode with its largest micro-batch; with times where those are stated and not measured
    for the plan alone."""
    fitting = [(mode, mode.largest) for mode in memory.modes if mode.largest is not None]
    if not fitting:
        return "in any mode: no micro-batch"
    if planned.question.machine.gpu is None:
        listed = [f"{mode.plan.recompute} with {size}" for mode, size in fitting]
        return f"the fastest mode first: {'; '.join(listed)}"
    timed = sorted(
        (
            step_seconds(planned.question, mode.plan.with_micro_batch(size), planned.rates),
            f"{mode.plan.recompute} with {size}",
        )
        for mode, size in fitting
    )
    told = [f"{words} ({seconds(time)} a step)" for time, words in timed]
    return f"the fastest first: {'; '.join(told)}"


def time_table(planned: Planned) -> list[str]:
    """The parts of a step.

    Args:
        planned: a run.
    """
    total = planned.time.seconds
    rows = [[name, seconds(t), share(t / total)] for name, t in planned.time.compute.items()]
    rows.append(
        [
            "waiting for other ranks",
            seconds(planned.time.exposed),
            share(planned.time.exposed / total),
        ]
    )
    rows.append(["step", seconds(total), share(1.0)])
    return table(["part of a step", "time", "share"], rows)


def travel_table(planned: Planned) -> list[str]:
    """What travels in a step.

    Args:
        planned: a run.
    """
    ranks = planned.question.gpus
    if ranks == 1:
        return ["One rank: nothing travels."]
    rows = [
        [
            travel.transfer.what,
            travel.transfer.kind,
            size(travel.transfer.sent(ranks)),
            seconds(travel.seconds),
            seconds(travel.exposed),
            travel.transfer.behind or "nothing",
        ]
        for travel in planned.time.travels
    ]
    return table(["travels", "collective", "sent by a rank", "time", "waited for", "behind"], rows)


def _totals(planned: Planned) -> list[str]:
    question, plan, supply = planned.question, planned.plan, planned.supply
    flop = planned.pair_flop
    lines = [
        f"FLOP of a pair: {digits(flop / 1e9)} G, a multiplication and an addition counted as two; "
        f"of a step and rank {digits(flop * plan.local_batch / 1e12)} T",
    ]
    if planned.reached is not None:
        peak = question.machine.peak(plan) or 0.0
        lines.append(
            f"Stated: the towers reach {share(question.utilisation)} of {digits(peak / 1e12)} "
            f"TFLOP/s. Over the whole step that is a model FLOP utilisation of "
            f"{share(planned.reached)}"
        )
    lines += [
        f"On the wire: {size(planned.sent)} a step and rank, "
        f"{size(planned.sent / planned.time.seconds)}/s",
        f"Data: {digits(supply.images)} images/s in all; {_decoded(planned)}",
        f"Epoch of {question.pairs:,} pairs: {seconds(planned.epoch_seconds)}. Run of "
        f"{planned.length.steps:,} steps: {seconds(planned.run_seconds)}, "
        f"{digits(planned.gpu_hours)} GPU-hours; evaluations and checkpoints come on top",
    ]
    if planned.question.machine.gpu is not None:
        lines += ["", *_by_utilisation(planned)]
    return lines


def run_rows(planned: Planned) -> list[list[str]]:
    """What a run comes to, as rows of a table.

    Args:
        planned: a run.
    """
    supply, question = planned.supply, planned.question
    return [
        ["FLOP of a pair", f"{digits(planned.pair_flop / 1e9)} G"],
        ["the towers' share of the peak, stated", share(question.utilisation)],
        ["model FLOP utilisation of the whole step", share(planned.reached or 0.0)],
        ["on the wire, a step and rank", size(planned.sent)],
        ["images per second, in all", digits(supply.images)],
        ["read per second, in all", size(supply.bytes)],
        ["cores that decode, in all", digits(supply.cores)],
        ["an epoch", seconds(planned.epoch_seconds)],
        ["the run", seconds(planned.run_seconds)],
        ["GPU-hours", digits(planned.gpu_hours)],
    ]


def _decoded(planned: Planned) -> str:
    question, supply = planned.question, planned.supply
    if not question.kilobytes:
        return "made at random, none is read or decoded"
    return (
        f"{size(supply.bytes)}/s at {digits(question.kilobytes)} kB a pair, and "
        f"{digits(supply.cores)} cores that decode {digits(question.decoded_per_core)} images/s"
    )


def _by_utilisation(planned: Planned) -> list[str]:
    rows: list[Sequence[str]] = []
    stated = planned.question.utilisation
    towers = sum(t for part, t in planned.time.compute.items() if part != "optimizer")
    for each in _SHARES:
        step = planned.time.seconds + towers * (stated / each - 1)
        run = step * planned.length.steps
        hours = run * planned.question.gpus / 3600
        rows.append([share(each), seconds(step), seconds(run), digits(hours)])
    return table(["towers reach", "step", "run", "GPU-hours"], rows)
