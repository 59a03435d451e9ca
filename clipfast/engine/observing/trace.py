"""Reads a trace of torch's profiler: what computed, what communicated, and which span asked for it.

On a GPU kernels compute, and those of NCCL communicate. On a CPU operators of the thread that
trains compute; gloo's threads communicate, and name their stretches ``gloo:...``.
"""

import re
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clipfast.engine.observing.intervals import Interval, both, union, without

Event = Mapping[str, Any]

STEP = "ProfilerStep#"
DATA = "data"
# What launches a collective, and what waits for one: no computing.
_COMMUNICATES = re.compile(r"^(c10d|_c10d_functional|nccl|gloo|deepspeed)\b")
_COMPUTES = re.compile(r"^\w+::\w+")
_WRAPPERS = ("autograd::", "torch::autograd::")
# A name that holds another one stands before it.
_KINDS = (
    *("reduce_scatter", "all_gather", "all_reduce", "all_to_all", "broadcast", "barrier"),
    *("gather", "scatter", "reduce", "send", "recv"),
)


@dataclass(frozen=True)
class Collective:
    """A stretch of communication.

    Attributes:
        kind: of collective, such as all_gather.
        span: the innermost span that it was asked for in; empty outside of all.
        time: from start to end, microseconds.
    """

    kind: str
    span: str
    time: Interval


@dataclass(frozen=True)
class Trace:
    """What the profiled steps did; times in microseconds.

    Attributes:
        steps: number of them.
        window: from the first one's start to the last one's end.
        compute: when something computed.
        data: when the host waited for data.
        collectives: in the order of their starts.
        spans: stretches of each span on the host, by its name.
        on_device: microseconds that a GPU computed for each span; empty on a CPU.
    """

    steps: int
    window: Interval
    compute: list[Interval]
    data: list[Interval]
    collectives: list[Collective]
    spans: dict[str, list[Interval]]
    on_device: dict[str, float]


def read_trace(events: Iterable[Event], names: Sequence[str]) -> Trace:
    """Sort the events of a trace.

    Args:
        events: ``traceEvents`` of the file.
        names: of the spans.

    Raises:
        ValueError: there is no step in it.
    """
    complete = [event for event in events if event.get("ph") == "X" and "dur" in event]
    hosts = [e for e in complete if e.get("cat") == "user_annotation"]
    marks = [e for e in hosts if str(e["name"]).startswith(STEP)]
    if not marks:
        raise ValueError("the trace has no step")
    window = (min(map(_start, marks)), max(map(_end, marks)))
    wanted = set(names)
    spans: dict[str, list[Interval]] = {}
    for event in hosts:
        if event["name"] in wanted:
            spans.setdefault(event["name"], []).append((_start(event), _end(event)))
    find = _Innermost(spans)
    data = union(both(union(spans.get(DATA, [])), [window]))
    kernels = [e for e in complete if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    on_device: dict[str, float] = {}
    if kernels:
        compute, collectives = _of_a_gpu(complete, kernels, find, on_device)
    else:
        operators = (e for e in complete if e.get("cat") == "cpu_op" and _computes(e["name"]))
        # Pixels are made ready by the thread that trains: it waits for them.
        compute = without(union((_start(e), _end(e)) for e in operators), data)
        collectives = _of_gloo(complete, find)
    kept = [c for c in collectives if both([c.time], [window])]
    return Trace(
        steps=len(marks),
        window=window,
        compute=both(compute, [window]),
        data=data,
        collectives=sorted(kept, key=lambda c: c.time),
        spans={name: both(union(times), [window]) for name, times in spans.items()},
        on_device=on_device,
    )


def _of_a_gpu(
    complete: Sequence[Event],
    kernels: Sequence[Event],
    find: "_Innermost",
    on_device: dict[str, float],
) -> tuple[list[Interval], list[Collective]]:
    launches = {
        e["args"]["correlation"]: _start(e)
        for e in complete
        if e.get("cat") in ("cuda_runtime", "cuda_driver") and "correlation" in e.get("args", {})
    }
    busy: list[Interval] = []
    collectives = []
    for event in kernels:
        time = (_start(event), _end(event))
        launched = launches.get(event.get("args", {}).get("correlation"))
        span = "" if launched is None else find(launched)
        if str(event["name"]).startswith("nccl"):
            collectives.append(Collective(_kind(event["name"]), span, time))
        else:
            busy.append(time)
            on_device[span] = on_device.get(span, 0.0) + time[1] - time[0]
    return union(busy), collectives


def _of_gloo(complete: Sequence[Event], find: "_Innermost") -> list[Collective]:
    # Its threads take what was asked for in that order.
    asked: dict[str, deque[float]] = {}
    for event in sorted((e for e in complete if e.get("cat") == "cpu_op"), key=_start):
        if str(event["name"]).startswith("c10d::"):
            asked.setdefault(_kind(event["name"]), deque()).append(_start(event))
    collectives = []
    for event in sorted((e for e in complete if str(e["name"]).startswith("gloo:")), key=_start):
        kind = _kind(event["name"])
        waiting = asked.get(kind)
        launched = _start(event)
        if waiting and waiting[0] <= launched:
            launched = waiting.popleft()
        collectives.append(Collective(kind, find(launched), (_start(event), _end(event))))
    return collectives


class _Innermost:
    """The shortest span around a moment."""

    def __init__(self, spans: Mapping[str, Sequence[Interval]]) -> None:
        self._sorted = {name: sorted(times) for name, times in spans.items()}

    def __call__(self, moment: float) -> str:
        around = []
        for name, times in self._sorted.items():
            place = bisect_right(times, (moment, float("inf"))) - 1
            if place >= 0 and times[place][0] <= moment <= times[place][1]:
                around.append((times[place][1] - times[place][0], name))
        return min(around)[1] if around else ""


def _computes(name: str) -> bool:
    return (
        bool(_COMPUTES.match(name))
        and not _COMMUNICATES.match(name)
        and not name.startswith(_WRAPPERS)
    )


def _kind(name: str) -> str:
    """all_gather of AllGather, allgather_into_tensor_coalesced_ and _all_gather_base."""
    letters = re.sub("[^a-z]", "", name.lower())
    return next((kind for kind in _KINDS if kind.replace("_", "") in letters), "collective")


def _start(event: Event) -> float:
    return float(event["ts"])


def _end(event: Event) -> float:
    return float(event["ts"]) + float(event["dur"])
