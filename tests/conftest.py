"""What every test runs under: poisoned uninitialised memory, few threads, and no GPU assumed."""

from __future__ import annotations

import os

import pytest
import torch
from torch.utils import deterministic


def pytest_configure(config: pytest.Config) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", min(4, cores or 1))))
    # Read by the processes that tests spawn: several ranks with a thread pool each would fight
    # over the cores, and torch.compile's own worker pool outlives the test that started it.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """torch.empty and its kin give NaN (the largest value for integers), in C++ code too.

    An output that a kernel leaves unwritten then shows. torch fills only in its deterministic mode;
    that mode only warns here, so that operators without a deterministic form keep working.
    """
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        deterministic.fill_uninitialized_memory,
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    deterministic.fill_uninitialized_memory = before[2]


@pytest.fixture(autouse=True)
def fixed_seed():
    """Every test starts from one seed, whatever ran before it."""
    torch.manual_seed(0)
