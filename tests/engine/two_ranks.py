"""What two ranks of one group find, for the tests of several files: a group's start costs more."""

import functools
from typing import Any

from tests.engine import test_equality, test_traffic
from tests.engine.launching import free_port, start_rank
from tests.ranks import run_ranks


@functools.cache
def found_by_two_ranks() -> dict[str, list[Any]]:
    """What each rank measured, by the file of tests that asks."""
    by_rank = run_ranks(2, _measure, free_port())
    return {name: [found[name] for found in by_rank] for name in by_rank[0]}


def _measure(port: int) -> dict[str, Any]:
    process = start_rank(port)
    return {
        "traffic": [test_traffic.measure(case, process) for case in test_traffic.CASES],
        "equality": [test_equality.measure(case, process) for case in test_equality.CASES],
    }
