"""The timing harness that every benchmark here uses.

A figure exists only beside a passed check: :func:`measure` runs ``check`` first and raises
:class:`CheckFailed` instead of timing a wrong result. Competitors are timed in alternation, so that
a machine that slows down slows all of them. Each row carries the median, the 20th and 80th
percentile, the peak of extra memory and a stamp of the environment.

    rows = measure_together({"clipfast": ours, "OpenCLIP 3.3.0": theirs}, check=same_result)
    RowFile("tokenizer", options, case_of).add(rows)  # of rows.py
"""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.parts.common.graphs import Recorder, checked_replay

Row = dict[str, Any]
_GRAPH = ", graph"  # what the name of a replay ends in


class CheckFailed(AssertionError):
    """The result to be timed is wrong, so there is no figure to report."""


def measure(name: str, fn: Callable[[], Any], *, check: Callable[[], Any], **options: Any) -> Row:
    """Check, then time one function; see :func:`measure_together` for the options."""
    return measure_together({name: fn}, check=check, **options)[0]


def measure_together(
    functions: Mapping[str, Callable[[], Any]],
    *,
    check: Callable[[], Any],
    device: str | torch.device = "cpu",
    warmup: int = 3,
    runs: int = 20,
    items: int | None = None,
    memory: bool = True,
    ratios_to: Sequence[str] | None = None,
    after_run: Callable[[], Any] | None = None,
    record: Recorder | None = None,
    recorded: Collection[str] | None = None,
    changes: Callable[[str], Sequence[Tensor]] = lambda name: (),
    **fields: Any,
) -> list[Row]:
    """Check once, then time functions in alternation: one run of each, ``runs`` times over.

    Args:
        functions: Name to function. The first is the one that ratios are about.
        check: Raises or returns False where a result is wrong; returning None counts as passed.
        device: Where the work runs. On CUDA, events time it, after a flush of the L2 cache and with
            the device kept busy while the host enqueues the first 10 ms of it.
        warmup: Untimed runs of each function.
        runs: Timed runs of each function.
        items: Units of work in a run (captions, tokens, pairs); adds ``items_per_s``.
        memory: Whether one more, untimed run measures ``peak_extra_bytes``.
        ratios_to: Functions that the others are set in ratio to; None is the first alone.
        after_run: Called after each run, outside what is timed: progress on long work.
        record: Records functions; their replays are then timed beside them. None records nothing.
        recorded: Names of those that are recorded, None for all.
        changes: From a function's name to the tensors that a run of it changes.
        **fields: Copied into each row: sizes, dtype, versions of peers.

    Returns:
        One row per function, and then one per replay, whose ``name`` ends in ", graph": ``name``,
        ``launch`` (eager or graph; ``no_graph`` says why a function that was to be recorded has no
        replay), ``replay_of`` (a replay's function), ``checked``, ``device``, ``runs``,
        ``median_ms``, ``p20_ms``, ``p80_ms``, ``peak_extra_bytes`` (None where it cannot be
        measured),
        ``items_per_s`` with ``items``, and ``ratio_to_<name>`` for each name of ``ratios_to`` but
        its own: how many times as fast that one is, the median over rounds. On CUDA ``host_ms``
        is what the host took to enqueue a run: where it is longer, the host sets the pace.

    Raises:
        CheckFailed: The check returned False or raised an AssertionError.
    """
    device = torch.device(device)
    _run_check(check, list(functions))
    is_cuda = device.type == "cuda"
    time_once = _cuda_timer(device) if is_cuda else _cpu_time_once
    after_run = after_run or (lambda: None)
    for fn in functions.values():
        for _ in range(warmup):
            fn()
            after_run()
    replays, failures = _record_all(functions, record, recorded, changes)
    timed = {**functions, **replays}
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    host_seconds: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(runs):
        for name, fn in timed.items():
            device_time, host_time = time_once(fn)
            seconds[name].append(device_time)
            host_seconds[name].append(host_time)
            after_run()

    rows = []
    bases = [next(iter(functions))] if ratios_to is None else ratios_to
    for name, fn in timed.items():
        row: Row = {"name": name, "checked": True, "device": str(device), "runs": runs, **fields}
        row["launch"] = "graph" if name in replays else "eager"
        if name in replays:
            row["replay_of"] = name.removesuffix(_GRAPH)
        if name in failures:
            row["no_graph"] = failures[name]
        row.update(_summary_ms(seconds[name]))
        if is_cuda:
            row["host_ms"] = 1e3 * statistics.median(host_seconds[name])
        if items is not None:
            row["items_per_s"] = items / statistics.median(seconds[name])
        for base in bases:
            if base == name:
                continue
            rounds = zip(seconds[name], seconds[base], strict=True)
            row[f"ratio_to_{base}"] = statistics.median(other / own for other, own in rounds)
        # A replay takes what its capture has set aside.
        measures = memory and name not in replays
        row["peak_extra_bytes"] = peak_extra_bytes(fn, device) if measures else None
        rows.append(row)
    return rows


def peak_extra_bytes(fn: Callable[[], Any], device: str | torch.device = "cpu") -> int | None:
    """Return how far memory in use rises above its level before, while ``fn`` runs once.

    On CUDA that is the caching allocator's count. On a CPU it is the resident set, from Linux's
    resettable high-water mark: good for tensors of megabytes, which the allocator maps and unmaps,
    not for small ones.

    Args:
        fn: The function; its result is dropped.
        device: Where its memory is.

    Returns:
        Bytes, or None on a CPU whose system has no such mark (anything but Linux).
    """
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        fn()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    try:
        # Freed memory that malloc keeps would hide the same amount allocated again.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _resident_high_water()
        fn()
        return _resident_high_water() - before
    except (OSError, AttributeError):
        return None


def _record_all(
    functions: Mapping[str, Callable[[], Any]],
    record: Recorder | None,
    recorded: Collection[str] | None,
    changes: Callable[[str], Sequence[Tensor]],
) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """Replays by their names; and for functions that have none, or a wrong one, why."""
    replays, failures = {}, {}
    for name, fn in functions.items():
        if record is None or (recorded is not None and name not in recorded):
            continue
        try:
            replays[name + _GRAPH] = checked_replay(fn, record, changes(name))
        except Exception as error:  # what cannot be captured has its eager row
            told = str(error).strip().splitlines() or [""]
            failures[name] = f"{type(error).__name__}: {told[0]}"
    return replays, failures


def _run_check(check: Callable[[], Any], names: list[str]) -> None:
    try:
        passed = check()
    except AssertionError as error:
        raise CheckFailed(f"{', '.join(names)}: {error}") from error
    if passed is not None and not bool(passed):
        raise CheckFailed(f"{', '.join(names)}: the check returned {passed!r}")


def _summary_ms(seconds: list[float]) -> Row:
    p20, median, p80 = torch.tensor(seconds, dtype=torch.float64).quantile(
        torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    )
    return {
        "median_ms": 1e3 * median.item(),
        "p20_ms": 1e3 * p20.item(),
        "p80_ms": 1e3 * p80.item(),
    }


def _cpu_time_once(fn: Callable[[], Any]) -> tuple[float, float]:
    start = time.perf_counter()
    fn()
    elapsed = time.perf_counter() - start
    return elapsed, elapsed


HEAD_START_CYCLES = 20_000_000  # about 10 ms of a GPU's clock


def _cuda_timer(device: torch.device) -> Callable[[Callable[[], Any]], tuple[float, float]]:
    """Return a function that times one run: the device's seconds, its L2 cold, and the host's."""
    l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
    flush = torch.empty(2 * l2_bytes, dtype=torch.int8, device=device)

    def time_once(fn: Callable[[], Any]) -> tuple[float, float]:
        start = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        with torch.cuda.device(device):
            flush.zero_()
            # Otherwise a short run is timed at the host's pace.
            torch.cuda._sleep(HEAD_START_CYCLES)
            start.record()
            host_start = time.perf_counter()
            fn()
            host_time = time.perf_counter() - host_start
            end.record()
            end.synchronize()
        return start.elapsed_time(end) / 1e3, host_time

    return time_once


def _resident_high_water() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM")
