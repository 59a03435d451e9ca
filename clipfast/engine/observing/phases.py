"""Where a step is, found out from what it calls: the step itself has no line for it.

``train_step`` gets an engine, a batch and an objective that pass everything on and say first which
phase begins. A phase lasts until the next one.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, cast

import torch

from clipfast.data import ImageTextBatch
from clipfast.loss import Objective

DATA, FORWARD, LOSS, BACKWARD, OPTIMIZER = "data", "forward", "loss", "backward", "optimizer"
GATHER = "gather of texts"
PHASES = (DATA, FORWARD, LOSS, BACKWARD, OPTIMIZER)


class Listener(Protocol):
    """What wants to know where a step is."""

    def enter(self, phase: str) -> None:
        """A phase begins, and the one before ends.

        Args:
            phase: one of ``PHASES``; empty at the end of a step.
        """


class Steps:
    """Tells listeners the phases of a step, and counts the seconds that steps wait for data.

    Attributes:
        listeners: of the step under way; none by default, which costs nothing.
        waited: seconds that the host waited for batches since ``take_waited``.
        lengths: ``[M]`` on the CPU, tokens of the captions of the last micro-batch.
    """

    def __init__(self) -> None:
        self.listeners: list[Listener] = []
        self.waited = 0.0
        self.lengths = torch.ones(1)
        self._phase = ""
        self._has_loss = False
        self._in_towers = False

    def span(self, name: str) -> AbstractContextManager[Any]:
        """A named stretch within a phase; a trace puts one that records in its place.

        Args:
            name: of it.
        """
        return nullcontext()

    def enter(self, phase: str) -> None:
        """See ``Listener``; the same phase again says nothing."""
        if phase == self._phase:
            return
        self._phase = phase
        self._has_loss = bool(phase) and (self._has_loss or phase == LOSS)
        for listener in self.listeners:
            listener.enter(phase)

    def towers(self, run: Callable[[], Any]) -> Any:
        """A forward pass: the first one, or behind the loss one that carries gradients.

        Args:
            run: it.
        """
        self.enter(BACKWARD if self._has_loss else FORWARD)
        self._in_towers = True
        try:
            return run()
        finally:
            self._in_towers = False

    def enter_loss(self) -> None:
        """The loss begins, or what it needs of the texts, which may also be asked for within a
        forward pass."""
        if not self._in_towers:
            self.enter(LOSS)

    def next(self, batches: Iterator[ImageTextBatch]) -> ImageTextBatch:
        """The next batch, whose micro-batches are waited for in the same way.

        Args:
            batches: of the loader.
        """
        self.enter(DATA)
        began = time.perf_counter()
        batch = next(batches)
        self.waited += time.perf_counter() - began
        return cast(ImageTextBatch, _Batch(batch, self))

    def take_waited(self) -> float:
        """``waited``, from now on counted anew."""
        waited, self.waited = self.waited, 0.0
        return waited

    def engine(self, engine: Any) -> Any:
        """The engine, or in a step that is listened to one that tells."""
        return _Engine(engine, self) if self.listeners else engine

    def objective(self, objective: Objective) -> Objective:
        """The objective, likewise."""
        return cast(Objective, _Objective(objective, self)) if self.listeners else objective


class _Batch:
    """A batch that counts what its micro-batches are waited for."""

    def __init__(self, batch: ImageTextBatch, steps: Steps) -> None:
        self._batch = batch
        self._steps = steps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def parts(self, count: int, passes: int | None = None) -> Sequence[Any]:
        return _Parts(self._batch.parts(count, passes), self._steps)


class _Parts(Sequence[Any]):
    def __init__(self, parts: Sequence[Any], steps: Steps) -> None:
        self._parts = parts
        self._steps = steps

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, m: Any) -> Any:
        steps = self._steps
        before = steps._phase
        steps.enter(DATA)
        began = time.perf_counter()
        part = self._parts[m]
        steps.waited += time.perf_counter() - began
        steps.lengths = part.lengths
        steps.enter(before)
        return part


class _Engine:
    def __init__(self, engine: Any, steps: Steps) -> None:
        self._engine = engine
        self._steps = steps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        return self._steps.towers(lambda: self._engine(*inputs, **options))

    def backward(self, *inputs: Any, **options: Any) -> Any:
        self._steps.enter(BACKWARD)
        return self._engine.backward(*inputs, **options)

    def step(self) -> None:
        self._steps.enter(OPTIMIZER)
        self._engine.step()


class _Objective:
    def __init__(self, objective: Objective, steps: Steps) -> None:
        self._objective = objective
        self._steps = steps

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objective, name)

    def prepare(self, *inputs: Any, **options: Any) -> Any:
        self._steps.enter_loss()
        with self._steps.span(GATHER):
            return self._objective.prepare(*inputs, **options)

    def loss(self, *inputs: Any, **options: Any) -> Any:
        self._steps.enter_loss()
        return self._objective.loss(*inputs, **options)
