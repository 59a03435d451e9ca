"""What every test runs under: poisoned uninitialised memory, few threads, no GPU assumed, and as
many processes as the machine holds."""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import Any

import pytest
import torch
from torch.utils import deterministic

from tests import needs

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


def compile_threads(cores: int, workers: int) -> int:
    """Threads of torch.compile in each of so many processes; one where cores are few, since their
    pools outlive the tests."""
    return max(1, cores // workers) if cores > MOST_WORKERS else 1


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--thorough", action="store_true", help="also the tests marked thorough")


def pytest_configure(config: pytest.Config) -> None:
    needs.required()  # a name that nobody knows ends the run here
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", min(4, cores()))))
    # Read by the processes that tests spawn: several ranks with a thread pool each would fight
    # over the cores, and so would torch.compile's worker pools, which outlive their tests.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # A process that xdist has started finds what the first one has set.
    workers = getattr(config.option, "numprocesses", None) or 1
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(compile_threads(cores(), workers)))
    # Threads that have nothing to do leave the core to another worker.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def group_of(item: pytest.Item) -> str | None:
    """Tests of one group run in one process, since they share what takes long to make."""
    fixtures = item._fixtureinfo.name2fixturedefs
    is_emulated = hasattr(item, "callspec") and "emulated" in item.callspec.params.values()
    if is_emulated or "emulated_library" in fixtures:
        return "emulated_library"
    for name, definitions in fixtures.items():
        if definitions[-1].scope in ("module", "session") and "tests" in definitions[-1].baseid:
            is_shared = definitions[-1].scope == "session"
            return name if is_shared else definitions[-1].baseid
    return None


# How many thorough tests each process has left out: one, or each of xdist's.
LEFT_OUT = pytest.StashKey[int]()


def asks_for_thorough(config: pytest.Config) -> bool:
    """Whether ``--thorough`` or an expression of ``-m`` asks for them."""
    return config.option.thorough or "thorough" in config.option.markexpr


@pytest.fixture(scope="session")
def is_thorough(pytestconfig: pytest.Config) -> bool:
    """For fixtures that prepare what only thorough tests read."""
    return asks_for_thorough(pytestconfig)


def leave_out_thorough(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Drop what is marked ``thorough``, unless asked for."""
    if asks_for_thorough(config):
        return
    dropped = [item for item in items if "thorough" in item.keywords]
    items[:] = [item for item in items if "thorough" not in item.keywords]
    config.hook.pytest_deselected(items=dropped)
    config.stash[LEFT_OUT] = len(dropped)
    if hasattr(config, "workeroutput"):
        config.workeroutput["left_out"] = len(dropped)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    # Every process of xdist collects all tests.
    if "left_out" in getattr(node, "workeroutput", {}):
        node.config.stash[LEFT_OUT] = node.workeroutput["left_out"]


# Before xdist reads the groups.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    leave_out_thorough(config, items)
    # The longest first, so that no process waits for another at the end.
    items.sort(key=lambda item: "slow" not in item.keywords)
    for item in items:
        if group := group_of(item):
            item.add_marker(pytest.mark.xdist_group(group))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        needs.need(*marker.args)
    if "gpu" in item.keywords:
        needs.need("cuda-device")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    needs.excuse(report, report.__dict__["call"], collector.path)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    needs.excuse(report, call, item.path)
    return report


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    # Also where no test has met it: forms that are not here are no parameters of tests.
    would_pass = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)
    if would_pass and not hasattr(session.config, "workerinput") and needs.unmet():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if left_out := config.stash.get(LEFT_OUT, 0):
        terminalreporter.write_line(f"{left_out} thorough tests left out: make test-thorough")
    for told in needs.unmet():
        terminalreporter.write_line(f"ERROR {needs.REQUIRE}: {told}", red=True)


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
