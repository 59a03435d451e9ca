"""Where the time of the profiled steps went, and how much of the communication was hidden."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from clipfast.engine.observing.intervals import both, total, union, without
from clipfast.engine.observing.trace import Trace

_MICRO = 1e-6


@dataclass(frozen=True)
class CollectiveTime:
    """A kind of collective in one span.

    Attributes:
        name: kind and span.
        calls: per step.
        hidden: seconds per step in which something computed meanwhile.
        exposed: seconds per step in which nothing did.
    """

    name: str
    calls: float
    hidden: float
    exposed: float


@dataclass(frozen=True)
class Breakdown:
    """Seconds of a step, the mean of those that were profiled.

        step = compute + exposed + data + idle

    Attributes:
        steps: number of them.
        step: from one step to the next.
        compute: something computed.
        exposed: something communicated, and nothing computed.
        hidden: something communicated while something computed; a part of ``compute``.
        data: the wait for data, with nothing else under way.
        idle: none of these: the host prepared, or waited for other ranks outside of a collective.
        collectives: the longest first.
        spans: seconds of each span on the host.
        on_device: seconds that a GPU computed for each span.
    """

    steps: int
    step: float
    compute: float
    exposed: float
    hidden: float
    data: float
    idle: float
    collectives: Sequence[CollectiveTime]
    spans: dict[str, float]
    on_device: dict[str, float]

    @classmethod
    def of(cls, trace: Trace) -> "Breakdown":
        """Of a trace.

        Args:
            trace: as ``read_trace`` gave it.
        """
        each = _MICRO / trace.steps
        window = [trace.window]
        communicating = both(union(c.time for c in trace.collectives), window)
        exposed = without(communicating, trace.compute)
        data = without(trace.data, union([*trace.compute, *communicating]))
        step = total(window) * each
        parts = [total(part) * each for part in (trace.compute, exposed, data)]
        return cls(
            steps=trace.steps,
            step=step,
            compute=parts[0],
            exposed=parts[1],
            hidden=total(both(communicating, trace.compute)) * each,
            data=parts[2],
            idle=max(0.0, step - sum(parts)),
            collectives=_collectives(trace, each),
            spans={name: total(times) * each for name, times in trace.spans.items()},
            on_device={name: took * each for name, took in trace.on_device.items()},
        )

    def plain(self) -> dict[str, Any]:
        """As JSON takes it; seconds."""
        return asdict(self)

    def lines(self) -> list[str]:
        """A table for a person, in milliseconds."""
        shares = [
            ("compute", self.compute, ""),
            ("exposed communication", self.exposed, ""),
            ("waiting for data", self.data, ""),
            ("idle", self.idle, ""),
            ("hidden communication", self.hidden, "  (while something computed)"),
        ]
        lines = [f"mean of {self.steps} profiled steps: {_ms(self.step)} ms"]
        lines += [
            f"  {name:<24}{_ms(took):>9} ms {took / self.step:>6.1%}{note}"
            for name, took, note in shares
        ]
        if self.collectives:
            lines.append(f"  {'collectives':<40}{'calls':>6}{'hidden ms':>11}{'exposed ms':>12}")
            lines += [
                f"    {c.name:<38}{c.calls:>6.3g}{_ms(c.hidden):>11}{_ms(c.exposed):>12}"
                for c in self.collectives
            ]
        on_gpu = bool(self.on_device)
        lines.append(f"  {'spans':<40}{'host ms':>17}" + (f"{'GPU ms':>12}" if on_gpu else ""))
        for name in sorted({*self.spans, *self.on_device} - {""}):
            line = f"    {name:<38}{_ms(self.spans.get(name, 0.0)):>17}"
            device = f"{_ms(self.on_device.get(name, 0.0)):>12}" if on_gpu else ""
            lines.append(line + device)
        return lines


def _collectives(trace: Trace, each: float) -> list[CollectiveTime]:
    found: dict[str, list[float]] = {}
    for one in trace.collectives:
        name = f"{one.kind} in {one.span}" if one.span else f"{one.kind} between steps"
        counts = found.setdefault(name, [0.0, 0.0, 0.0])
        hidden = total(both([one.time], trace.compute))
        counts[0] += 1 / trace.steps
        counts[1] += hidden * each
        counts[2] += (one.time[1] - one.time[0] - hidden) * each
    entries = [CollectiveTime(name, *counts) for name, counts in found.items()]
    return sorted(entries, key=lambda entry: -(entry.hidden + entry.exposed))


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.2f}"
