"""What every test runs under: poisoned uninitialised memory, few threads, no GPU assumed, and as
many processes as the machine holds."""

from __future__ import annotations

import os

import pytest
import torch
from torch.utils import deterministic

# A test with a compiler or a model in it takes up to this much.
BYTES_PER_WORKER = 5 << 30
MOST_WORKERS = 4


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What `-n auto` means: processes for the cores and the memory of this machine, or none (0).

    Tests on a GPU take its memory for themselves.
    """
    if torch.cuda.is_available() or not hasattr(os, "sysconf"):
        return 0
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    workers = min(cores(), memory // BYTES_PER_WORKER, MOST_WORKERS)
    return int(workers) if workers > 1 else 0


def pytest_configure() -> None:
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", min(4, cores()))))
    # Read by the processes that tests spawn: several ranks with a thread pool each would fight
    # over the cores, and so would torch.compile's worker pools, which outlive their tests.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(max(1, cores() // MOST_WORKERS)))
    # Threads that have nothing to do leave the core to another worker.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def group_of(item: pytest.Item) -> str | None:
    """Tests of one group run in one process, since they share what takes long to make."""
    if hasattr(item, "callspec") and "emulated" in item.callspec.params.values():
        return "emulated_operators"
    for name, definitions in item._fixtureinfo.name2fixturedefs.items():
        if definitions[-1].scope in ("module", "session") and "tests" in definitions[-1].baseid:
            is_shared = definitions[-1].scope == "session"
            return name if is_shared else definitions[-1].baseid
    return None


# Before xdist reads the groups.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # The longest first, so that no process waits for another at the end.
    items.sort(key=lambda item: "slow" not in item.keywords)
    for item in items:
        if group := group_of(item):
            item.add_marker(pytest.mark.xdist_group(group))
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
