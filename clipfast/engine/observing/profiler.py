"""``--profile``: a trace of some steps per rank, and on rank 0 where their time went."""

import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import record_function

from clipfast.engine.deepspeed.spans import reducers
from clipfast.engine.observing.breakdown import Breakdown
from clipfast.engine.observing.phases import GATHER, PHASES, Steps
from clipfast.engine.observing.trace import read_trace
from clipfast.engine.plan import RunPlan
from clipfast.files import explain

# In the run's folder.
FOLDER = "profile"
# Steps of a start that are unlike the others: kernels are chosen and compiled, memory is taken.
WARM_UP = 3
IMAGE_TOWER, TEXT_TOWER, REDUCE = "image tower", "text tower", "reduce"
SPANS = (*PHASES, IMAGE_TOWER, TEXT_TOWER, GATHER, REDUCE)
_TOP = 15


class Profiler:
    """Traces ``--profile`` steps of this start. Every other step runs as without it.

    Args:
        plan: of the run.
        engine: the DeepSpeed engine.
        steps: told which spans a step has.
        taken: steps before this start.
        last: number of the run's last step.
        say: shows a line.
    """

    def __init__(
        self,
        plan: RunPlan,
        engine: Any,
        steps: Steps,
        taken: int,
        last: int,
        say: Callable[[str], object],
    ) -> None:
        self._plan = plan
        self._engine = engine
        self._steps = steps
        self._say = say
        # One more is traced and dropped.
        begins = max(taken + 1, min(taken + WARM_UP, last - plan.config.logging.profile))
        self._first, self._last = begins, min(begins + plan.config.logging.profile, last)
        self._profile: Any = None
        if self._first == self._last:
            say("--profile traces nothing: the one step that is left is unlike the others")

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Trace a step where its turn has come.

        Args:
            number: of the step.
        """
        if not self._first <= number <= self._last or self._first == self._last:
            yield
            return
        if self._profile is None:
            self._begin()
        with self._spans():
            yield
        if number in (self._first, self._last):
            # What is left of this step is not the next one's.
            self._wait()
        self._profile.step()

    def close(self) -> None:
        """Write what there is of a trace that a signal cut short."""
        if self._profile is not None:
            self._profile.stop()

    def _begin(self) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self._plan.process.device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        active = self._last - self._first
        self._profile = torch.profiler.profile(
            activities=activities,
            schedule=torch.profiler.schedule(wait=0, warmup=1, active=active, repeat=1),
            on_trace_ready=self._write,
        )
        self._profile.start()

    def _wait(self) -> None:
        if self._plan.process.device.type == "cuda":
            torch.cuda.synchronize(self._plan.process.device)

    @contextmanager
    def _spans(self) -> Iterator[None]:
        """Name the parts of a step in the trace. The methods are the engine's own again behind."""
        model = self._engine.module
        named = [(model, "encode_image", IMAGE_TOWER), (model, "encode_text", TEXT_TOWER)]
        named += [(owner, name, REDUCE) for owner, name in reducers(self._engine)]
        phases = _PhaseSpans()
        with ExitStack() as undone:
            for owner, name, span in named:
                setattr(owner, name, _within(span, getattr(owner, name)))
                undone.callback(delattr, owner, name)
            self._steps.listeners.append(phases)
            undone.callback(self._steps.listeners.remove, phases)
            setattr(self._steps, "span", record_function)  # noqa: B010
            undone.callback(delattr, self._steps, "span")
            undone.callback(phases.enter, "")
            yield

    def _write(self, profile: Any) -> None:
        self._profile = None
        folder = self._plan.folder / FOLDER
        path = folder / f"rank{self._plan.process.rank:05}.json.gz"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            profile.export_chrome_trace(str(path))
            if self._plan.process.is_main:
                self._summarise(profile, path)
        except (OSError, ValueError) as error:
            reason = explain(error, path) if isinstance(error, OSError) else error
            self._say(f"The profile is not written: {reason}")

    def _summarise(self, profile: Any, path: Path) -> None:
        with gzip.open(path) as file:
            breakdown = Breakdown.of(read_trace(json.load(file)["traceEvents"], SPANS))
        lines = breakdown.lines()
        by = "self_device_time_total" if breakdown.on_device else "self_cpu_time_total"
        averages = [a for a in profile.key_averages() if a.key not in SPANS]
        table = torch.autograd.profiler_util.EventList(averages).table(
            sort_by=by, row_limit=_TOP, max_name_column_width=50
        )
        (path.parent / "summary.json").write_text(json.dumps(breakdown.plain(), indent=1))
        (path.parent / "summary.txt").write_text("\n".join([*lines, "", table, ""]))
        for line in [
            *lines,
            f"profile: {path.parent} (traces for ui.perfetto.dev, top operators in summary.txt)",
        ]:
            self._say(line)


class _PhaseSpans:
    """A listener that opens a span for each phase."""

    def __init__(self) -> None:
        self._open: Any = None

    def enter(self, phase: str) -> None:
        if self._open is not None:
            self._open.__exit__(None, None, None)
            self._open = None
        if phase:
            self._open = record_function(phase)
            self._open.__enter__()


def _within(span: str, run: Callable[..., Any]) -> Callable[..., Any]:
    def within(*inputs: Any, **options: Any) -> Any:
        with record_function(span):
            return run(*inputs, **options)

    return within
