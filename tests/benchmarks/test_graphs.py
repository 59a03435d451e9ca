"""Replays are timed beside eager launches, where they give the same.

The recorder here stands for a CUDA graph: what it replays writes where its recording wrote.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from benchmarks.parts.adamw.measure import changed_tensors
from benchmarks.parts.common.graphs import Recorded, checked_replay, recorder_of
from benchmarks.parts.common.harness import measure_together
from benchmarks.parts.common.schema import to_record
from clipfast import FusedAdamW


def record(function):
    results = function()

    def replay():
        for kept, new in zip(tree_leaves(results), tree_leaves(function()), strict=True):
            if isinstance(kept, torch.Tensor):
                kept.copy_(new)

    return Recorded(replay, results)


def record_nothing(function):
    return Recorded(lambda: None, function())


def refuse(function):
    raise RuntimeError("operation not permitted when stream is capturing\nmore")


def measure(recorder, **options):
    x = torch.randn(8)
    return measure_together(
        {"ours": lambda: (x * 2, [x.sum()]), "theirs": lambda: x + x},
        check=lambda: True,
        runs=3,
        record=recorder,
        **options,
    )


def test_replays_have_rows_of_their_own_behind_the_eager_ones():
    rows = measure(record)
    assert [row["name"] for row in rows] == ["ours", "theirs", "ours, graph", "theirs, graph"]
    assert [row["launch"] for row in rows] == ["eager"] * 2 + ["graph"] * 2
    assert [row.get("replay_of") for row in rows] == [None, None, "ours", "theirs"]
    assert all("no_graph" not in row for row in rows)
    assert rows[2]["ratio_to_ours"] > 0
    assert rows[2]["peak_extra_bytes"] is None
    environment = {"commit": None, "device": {"cpu": "one"}}
    record_ = to_record({**rows[2], "subject": "loss_throughput", "environment": environment})
    assert record_["launch"] == "graph"


def test_only_the_functions_named_are_recorded():
    rows = measure(record, recorded=["theirs"])
    assert [row["name"] for row in rows] == ["ours", "theirs", "theirs, graph"]


@pytest.mark.parametrize(
    ("recorder", "reason"),
    [
        (refuse, "RuntimeError: operation not permitted when stream is capturing"),
        (record_nothing, "AssertionError: tensor 0 of a replay differs by nan"),
    ],
)
def test_what_cannot_be_replayed_keeps_its_eager_row_and_says_why(recorder, reason):
    rows = measure(recorder)
    assert [row["name"] for row in rows] == ["ours", "theirs"]
    assert [row["no_graph"] for row in rows] == [reason] * 2


def test_a_cpu_records_nothing():
    assert recorder_of(torch.device("cpu")) is None
    assert [row["name"] for row in measure(None)] == ["ours", "theirs"]


def make_step():
    params = [nn.Parameter(torch.randn(300))]
    optimizer = FusedAdamW(params, lr=0.1)
    params[0].grad = torch.randn(300)
    optimizer.step()
    return optimizer


def test_a_steps_replay_is_compared_from_the_same_weights_which_stay():
    optimizer = make_step()
    changed = changed_tensors(optimizer)
    assert len(changed) == 6  # weight, two statistics, exponents, step, steps skipped
    before = [tensor.detach().clone() for tensor in changed]
    replay = checked_replay(optimizer.step, record, changed)
    assert all(torch.equal(a, b) for a, b in zip(changed, before, strict=True))
    replay()
    assert optimizer.state[changed[0]]["step"].item() == 2


def test_a_replay_that_forgets_the_step_count_is_found():
    optimizer = make_step()

    def forgetful(function):
        def replay():
            for state in optimizer.state.values():
                state["step"].sub_(1)
            function()

        return Recorded(replay, None)

    with pytest.raises(AssertionError, match="of a replay differs"):
        checked_replay(optimizer.step, forgetful, changed_tensors(optimizer))
