"""Ranks that differ are named on every rank; ranks that do not are left alone."""

import socket

import pytest
import torch
import torch.distributed as dist
from torch import nn

from clipfast.engine import ConfigError
from clipfast.engine.agreement import require_same, require_same_weights, weights_hash
from clipfast.engine.builders import Builders
from clipfast.engine.facts import contradictions, facts, source_hash
from tests.engine.plans import plan
from tests.ranks import run_ranks


def _model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3))
    model[1].to(torch.bfloat16)
    return model


def _verdicts() -> list[str]:
    rank = dist.get_rank()
    process = plan(ranks=3, rank=rank, batch_size=33).process
    said = []

    def note(act) -> None:
        try:
            act()
            said.append("same")
        except (ConfigError, RuntimeError) as error:
            said.append(f"{type(error).__name__}: {error}")

    note(lambda: require_same(process, {"shards": "abc"}))
    note(lambda: require_same(process, {"shards": "abc" if rank != 2 else "abd", "seed": "0"}))
    model = _model()
    note(lambda: require_same_weights(process, model, 4))
    if rank == 1:
        # One bit of one weight, as a device that computes wrong would leave it.
        model[1].weight.detach().view(torch.int16)[2, 3] ^= 1
    note(lambda: require_same_weights(process, model, 4))
    # Two weights that change places have the same sum.
    model = _model()
    if rank == 2:
        swapped = [p.detach().clone() for p in (model[0].bias, model[1].bias)]
        model[0].bias.data[0], model[1].bias.data[0] = swapped[1][0].float(), swapped[0][0]
    note(lambda: require_same_weights(process, model, 4))
    return said


def test_agreement_names_the_rank_that_differs_on_every_rank():
    host = socket.gethostname()
    said = run_ranks(3, _verdicts)
    assert said[0] == said[1] == said[2]
    same, shards, weights, bit, places = said[0]
    assert same == weights == "same"
    assert shards.startswith(
        f"ConfigError: ranks disagree; rank 0 is on {host}: rank 2 on {host} has shards abd where "
        "rank 0 has abc. Start all ranks"
    )
    assert "those of rank 1 on" in bit
    assert "after step 4" in bit
    assert "those of rank 2 on" in places


def test_agreement_hash_of_weights_sees_every_bit():
    first, second = _model(), _model()
    assert weights_hash(first) == weights_hash(second)
    second[1].bias.detach().view(torch.int16)[0] ^= 1
    assert weights_hash(first) != weights_hash(second)


def test_facts_are_the_same_on_all_ranks_of_a_run_and_name_what_is_not():
    mine, theirs = (facts(plan(ranks=2, rank=rank)) for rank in range(2))
    assert contradictions(mine, theirs) == []
    assert len(source_hash()) == 12
    for options, words in (
        ({"batch_size": 64}, "--batch-size 64 where rank 0 has 32"),
        ({"seed": 5}, "--seed 5 where rank 0 has 0"),
        ({"micro_batch": 4}, "micro-batches 4 where rank 0 has 1"),
        ({"precision": "bf16"}, "weights bfloat16 where rank 0 has float32"),
        ({"stage": 3}, "ZeRO stage 3 where rank 0 has 1"),
    ):
        assert words in contradictions(facts(plan(ranks=2, rank=1, **options)), theirs), words
    other = {**theirs, "torch": "2.0", "sources of clipfast": "another"}
    assert len(contradictions(mine, other)) == 2
    assert contradictions(mine, {})[-1] == f"and {len(mine) - 6} more"


def test_a_rank_alone_compares_no_weights(monkeypatch):
    def unwanted(model: nn.Module) -> str:
        raise AssertionError("hashed for nobody")

    monkeypatch.setattr("clipfast.engine.builders.weights_hash", unwanted)
    parts = Builders(
        model=lambda plan: nn.Linear(2, 2),
        optimizer=lambda plan, model: None,
        engine=lambda plan, model, optimizer: "built",
    )
    assert parts.build_engine(plan()) == "built"
    with pytest.raises(AssertionError, match="hashed for nobody"):
        parts.build_engine(plan(ranks=2))
