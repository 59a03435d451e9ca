"""When a run saves checkpoints, what it does where one fails, and what it says."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from clipfast.engine import progress
from clipfast.engine.attempts import attempt
from clipfast.engine.config import CheckpointConfig
from clipfast.engine.opening import Opening, saves
from clipfast.engine.requests import Requests

Say = Callable[[str], object]
# A wait that a person would want to know of.
_LONG_SECONDS = 1.0


class Saves:
    """The saves of a run; one that fails costs the attempt, not the run. Methods are collectives.

    Args:
        opening: of the run, with its checkpoints.
        requests: learn what was saved and what failed.
        options: of the run.
        placed: hears of each checkpoint that stands, on every rank: its folder, and what shows a
            line.
    """

    def __init__(
        self,
        opening: Opening,
        requests: Requests,
        options: CheckpointConfig,
        placed: Callable[[Path, Say], object] | None = None,
    ) -> None:
        self._opening = opening
        self._saving = opening.checkpoints.saving
        self._requests = requests
        self._options = options
        self._placed = placed
        self._has_told = False

    @property
    def progress(self) -> int:
        """Of this rank's save in the background, for ``Requests.agree``."""
        return self._saving.progress

    def are_due(self, step: int, *, last: bool) -> bool:
        """Whether a checkpoint is saved after a step.

        Args:
            step: optimizer steps taken.
            last: it is the run's last one.
        """
        every = (self._options.every_steps, self._options.keep_every)
        return any(n > 0 and step % n == 0 for n in every) or (last and saves(self._options))

    def go_on(self, say: Say) -> None:
        """Put in place what all ranks have written meanwhile.

        Args:
            say: shows a line.
        """
        least = self._requests.least_progress
        self._try_in_background(lambda: self._saving.advance(least), say)

    def finish(self, say: Say) -> None:
        """Wait for what is being written in the background.

        Args:
            say: shows a line.
        """
        if self._saving.step is not None:
            progress.mark("save")
            self._try_in_background(self._saving.finish, say)

    def save(
        self,
        engine: Any,
        step: int,
        state: Mapping[str, Any],
        say: Say,
        *,
        stops: bool,
        last: bool,
    ) -> None:
        """Save a checkpoint, in the background where the run goes on and is to.

        Args:
            engine: the DeepSpeed engine.
            step: optimizer steps taken.
            state: what else a run needs to go on; as JSON takes it.
            say: shows a line.
            stops: the run ends here, and can be resumed.
            last: this was its last step.
        """
        # Not at every step: how long saves take tells the watch how long they may take.
        progress.mark("save")
        self._wait_for_the_one_before(step, say)
        checkpoints = self._opening.checkpoints
        act: Callable[[Any, int, Mapping[str, Any]], Path | None] = self._saving.begin
        if not self._options.background or stops or last:
            act = checkpoints.save

        def save() -> None:
            self._opening.require()
            self._note(act(engine, step, state), say)

        words = _not_saved(step)
        # A run that ends here has no later attempt of its own accord.
        failed = attempt(save, words, say, self._requests if last else None)
        if failed and stops:
            failed = attempt(save, words, say)
        if failed:
            self._requests.failed()
        else:
            self._requests.saved()
        if stops:
            by = self._requests.signal_name or "a signal"
            say(
                f"Interrupted by {by} after step {step}. Go on from "
                f"{checkpoints.latest() or 'the start'} with the same command and --resume latest"
            )

    def _wait_for_the_one_before(self, step: int, say: Say) -> None:
        before, start = self._saving.step, time.monotonic()
        self.finish(say)
        seconds = time.monotonic() - start
        if before is not None and seconds > _LONG_SECONDS and not self._has_told:
            self._has_told = True
            say(
                f"The checkpoint after step {step} waited {seconds:.1f} s for the one after step "
                f"{before}: the disk takes longer than the steps between them"
            )

    def _try_in_background(self, act: Callable[[], Path | None], say: Say) -> None:
        step = self._saving.step
        if step is not None and attempt(lambda: self._note(act(), say), _not_saved(step), say):
            self._requests.failed()

    def _note(self, path: Path | None, say: Say) -> None:
        if path is not None and self._placed is not None:
            self._placed(path, say)


def _not_saved(step: int) -> str:
    return f"NOT SAVED after step {step}"
