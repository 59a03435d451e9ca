"""Training time, with the pauses for evaluation and checkpoints left out."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class TrainingClock:
    """Runs from its creation; ``paused()`` stops it."""

    def __init__(self) -> None:
        self._before = 0.0
        self._since = time.monotonic()

    @property
    def seconds(self) -> float:
        """Training time so far."""
        return self._before + time.monotonic() - self._since

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside does not count."""
        self._before = self.seconds
        try:
            yield
        finally:
            self._since = time.monotonic()
