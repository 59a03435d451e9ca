"""Bytes that a step's collectives move: counted in real processes, and by the formula."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from clipfast.data import SyntheticLoader
from clipfast.engine import Config, ModelOptions, ZeroConfig
from clipfast.engine.deepspeed.wrap import initialise_engine
from clipfast.engine.launch import Process
from clipfast.engine.optimizer import build_optimizer
from clipfast.engine.plan import RunPlan, decide
from clipfast.engine.step import train_step
from clipfast.engine.traffic import bytes_sent, step_traffic
from clipfast.loss.traffic import Transfer
from tests.engine.collectives import Collectives
from tests.engine.plans import PAPER
from tests.engine.state_cases import tiny_model

BATCH, RANKS = 16, 2
# Precision, stage, micro-batches, options of the optimizer.
CASES = [
    *(("fp32", stage, k, {}) for stage, k in ((0, 2), (1, 1), (2, 2), (3, 1), (3, 2))),
    *(("bf16", stage, 2, {}) for stage in (0, 1)),
    ("bf16", 2, 2, {"optimizer": PAPER}),
]


def plan_of(case: tuple, process: Process) -> RunPlan:
    precision, stage, micro_batches, options = case
    config = Config(
        model=ModelOptions("ViT-tiny"),
        batch_size=BATCH,
        micro_batch=BATCH // RANKS // micro_batches,
        precision=precision,
        zero=ZeroConfig(stage),
        **options,
    )
    return decide(config, process)


@pytest.mark.xdist_group("two ranks")
def test_step_traffic_is_what_two_ranks_move_at_every_stage():
    from tests.engine.two_ranks import found_by_two_ranks

    measured = found_by_two_ranks()["traffic"]
    process = Process(0, 0, RANKS, RANKS, torch.device("cpu"))
    for case, *by_rank in zip(CASES, *measured, strict=True):
        moved, times = Counter(), Counter()
        for transfer in step_traffic(plan_of(case, process), tiny_model()):
            moved[transfer.kind] += transfer.bytes
            times[transfer.kind] += transfer.times
        for found, called, small in by_rank:
            assert found == moved, case
            # Buckets join some of them; none is missing.
            assert all(0 < called[kind] <= times[kind] for kind in moved), (case, called, times)
            assert small < 200, case


def measure(case: tuple, process: Process) -> tuple[dict, dict, int]:
    """Bytes and times by kind of collective, and small bytes, of a step on a rank."""
    plan, model = plan_of(case, process), tiny_model()
    engine = initialise_engine(plan, model, build_optimizer(plan, model))
    loader = SyntheticLoader(
        64,
        64,
        BATCH,
        rank=plan.process.rank,
        world_size=plan.process.world_size,
        seed=0,
        device=plan.process.device,
        dtype=plan.dtype,
    )
    batches = iter(loader)
    # At stage 3 the order of parameters is learned in the first step and agreed on in the second.
    for _ in range(3):
        batch = next(batches)
        batch = replace(batch, tokens=batch.tokens.clamp_max(499))
        with Collectives() as seen:
            train_step(engine, batch, plan.micro_batches)
    engine.destroy()
    return dict(seen.bytes), dict(seen.times), seen.small


def test_one_rank_moves_nothing():
    alone = Process(0, 0, 1, 1, torch.device("cpu"))
    assert step_traffic(plan_of(CASES[0], alone), tiny_model()) == []


@pytest.mark.parametrize(
    ("kind", "sent"), [("all_reduce", 150.0), ("all_gather", 75.0), ("reduce_scatter", 75.0)]
)
def test_a_ring_of_four_sends_three_quarters_once_or_twice(kind, sent):
    transfers = [Transfer("x", kind, 60), Transfer("y", kind, 40, times=3)]
    assert bytes_sent(transfers, 4) == sent
