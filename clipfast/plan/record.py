"""A plan for programs: what ``--json`` writes."""

from dataclasses import asdict
from typing import Any

import clipfast
from clipfast.engine.rank_bytes import RankBytes
from clipfast.plan.planning import Planned


def record(planned: Planned) -> dict[str, Any]:
    """A plan in plain values: bytes, seconds, FLOP.

    Args:
        planned: a run.
    """
    plan, question, memory = planned.plan, planned.question, planned.memory
    return {
        "clipfast": clipfast.__version__,
        "model": plan.config.model.name,
        "parameters": planned.parameters,
        "gpus": question.gpus,
        "machine": question.machine.name,
        "batch_size": plan.config.batch_size,
        "local_batch": plan.local_batch,
        "micro_batch": plan.micro_batch,
        "dtype": str(plan.dtype).removeprefix("torch."),
        "zero_stage": plan.stage,
        "recompute": plan.recompute,
        "compile": plan.compile,
        "caption_tokens": question.caption_tokens,
        "notes": list(planned.notes),
        "memory": None
        if memory is None
        else {
            "available": memory.available,
            "fits": memory.fits,
            "needed": _bytes(memory.need),
            "modes": {
                mode.plan.recompute: {**_bytes(mode.need), "largest_micro_batch": mode.largest}
                for mode in memory.modes
            },
            "stages": {str(stage): need for stage, need in memory.stages.items()},
            "cards": list(memory.cards),
        },
        "flop_per_pair": planned.pair_flop,
        "utilisation": question.utilisation if question.machine.gpu else None,
        "model_flop_utilisation": planned.reached,
        "step": {
            "seconds": planned.time.seconds,
            "compute": dict(planned.time.compute),
            "exposed": planned.time.exposed,
            "transfers": [
                {
                    **asdict(travel.transfer),
                    "sent": travel.transfer.sent(question.gpus),
                    "seconds": travel.seconds,
                    "exposed": travel.exposed,
                }
                for travel in planned.time.travels
            ],
            "sent": planned.sent,
        },
        "data": asdict(planned.supply),
        "pairs": question.pairs,
        "steps": planned.length.steps,
        "epoch_seconds": planned.epoch_seconds,
        "run_seconds": planned.run_seconds,
        "gpu_hours": planned.gpu_hours,
    }


def _bytes(need: RankBytes) -> dict[str, int]:
    return {
        **asdict(need.states),
        "activations": need.activations,
        "loss": need.loss,
        "features": need.features,
        "images": need.images,
        "decoder": need.decoder,
        "flattened": need.flattened,
        "holes": need.holes,
        "process": need.process,
        "total": need.total,
    }
