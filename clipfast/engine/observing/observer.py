"""Takes the steps of a run and knows what a logging row says of them beside the loss."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from clipfast.data import ImageTextBatch
from clipfast.engine.deepspeed.wrap import step_figures
from clipfast.engine.observing.parts import PartTimer
from clipfast.engine.observing.phases import DATA, Steps
from clipfast.engine.observing.profiler import Profiler
from clipfast.engine.observing.rates import Utilisation
from clipfast.engine.observing.reading import Reading, with_hit_rate
from clipfast.engine.observing.usage import memory_figures
from clipfast.engine.plan import RunPlan
from clipfast.engine.step import train_step


class Observer:
    """A step that is not logged costs two looks at the clock; one that is waits for nothing either,
    before ``figures``.

    Args:
        plan: of the run.
        engine: the DeepSpeed engine.
        say: shows a line.
        taken: steps before this start.
        last: number of the run's last step.
    """

    def __init__(
        self, plan: RunPlan, engine: Any, say: Callable[[str], object], taken: int, last: int
    ) -> None:
        self._plan = plan
        self._taken = taken
        self._engine = engine
        self._steps = Steps()
        self._utilisation = Utilisation(plan, say)
        self._reading = Reading(plan.config.data)
        self._parts: PartTimer | None = None
        self._profiler = None
        if plan.config.logging.profile:
            self._profiler = Profiler(plan, engine, self._steps, taken, last, say)

    def step(self, batches: Iterator[ImageTextBatch], *, is_logged: bool) -> tuple[Tensor, Tensor]:
        """Take one step.

        Args:
            batches: of the loader.
            is_logged: ``figures`` is called after it.

        Returns:
            See ``train_step``.
        """
        steps = self._steps
        self._taken += 1
        with ExitStack() as watched:
            if self._profiler is not None:
                watched.enter_context(self._profiler.step(self._taken))
            if is_logged:
                self._parts = PartTimer(self._plan.process.device)
                steps.listeners.append(self._parts)
                watched.callback(steps.listeners.remove, self._parts)
                watched.enter_context(self._engine.gradient_norms.observed())
            batch = steps.next(batches)
            result = train_step(
                steps.engine(self._engine),
                batch,
                self._plan.micro_batches,
                steps.objective(self._plan.objective),
                self._plan.keep_graphs or 0,
            )
            steps.enter("")
        return result

    def close(self) -> None:
        """No step comes any more."""
        if self._profiler is not None:
            self._profiler.close()

    def figures(self, step: int, taken: int, seconds: float) -> dict[str, float]:
        """What is known of the steps since the last call, and of the last one. A collective that
        waits for the device.

        Args:
            step: number of the last one.
            taken: steps since the last call.
            seconds: of training in them.
        """
        pairs = taken * self._plan.config.batch_size
        assert self._parts is not None
        parts = self._parts.seconds()
        sums, largest = self._reading.take(taken)
        largest = self._over_ranks(
            {
                "seconds/data": self._steps.take_waited() / taken,
                **largest,
                **memory_figures(self._plan.process.device),
            },
            # The slowest one holds all of them up.
            dist.ReduceOp.MAX,
        )
        return {
            **step_figures(self._engine, self._plan.dtype),
            "images_per_second": pairs / seconds,
            "samples": float(step * self._plan.config.batch_size),
            **self._utilisation.figures(pairs / seconds, self._steps.lengths),
            "seconds/step": seconds / taken,
            **{f"seconds/{name}": took for name, took in parts.items() if name != DATA},
            **largest,
            **with_hit_rate(self._over_ranks(sums, dist.ReduceOp.SUM)),
        }

    def _over_ranks(
        self, figures: dict[str, float], how: "dist.ReduceOp.RedOpType"
    ) -> dict[str, float]:
        if self._plan.process.world_size == 1 or not figures:
            return figures
        values = torch.tensor(
            list(figures.values()), dtype=torch.float64, device=self._plan.process.device
        )
        dist.all_reduce(values, op=how)
        return dict(zip(figures, values.tolist(), strict=True))
