"""Two ranks, in micro-batches and at stages of ZeRO, come to one plain process's weights: a short
form of ``python -m tests.campaigns.equality``."""

import pytest

from clipfast.engine.launch import Process
from tests.engine.equality import Case, distance, engine_changes, truth_of

CASES = [
    Case("ViT", "fp32", 1, 4, keep_graphs=2),
    Case("ViT", "bf16", 2, 4, keep_graphs=4),
    Case("RN bn-batch", "fp32", 0, 4, keep_graphs=1),
    Case("RN sync-bn", "fp32", 1, 1),
    Case("near", "fp32", 3, 4, keep_graphs=1),
]


def measure(case: Case, process: Process) -> dict:
    """What the engine changes, on a rank."""
    return engine_changes(case, process)


@pytest.mark.xdist_group("two ranks")
def test_two_ranks_in_micro_batches_come_to_one_process_weights():
    from tests.engine.two_ranks import found_by_two_ranks

    by_rank = found_by_two_ranks()["equality"]
    for case, *found in zip(CASES, *by_rank, strict=True):
        truth = truth_of(case)
        for change in found:
            assert distance(change, truth.change) <= truth.bound, case


def test_equality_can_fail():
    """A gradient that is twice as large is seen, and a bound is no half of what is trained."""
    truth = truth_of(CASES[0])
    twice = {name: change * 2 for name, change in truth.change.items()}
    assert distance(twice, truth.change) > 0.9 > truth.bound
