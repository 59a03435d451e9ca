"""What a run shows and writes: progress bar, metrics.jsonl, services. Rank 0 alone acts."""

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clipfast.engine.config import LoggingConfig
from clipfast.engine.rows import Rows
from clipfast.engine.sinks import Sinks


def rate(per_second: float) -> str:
    """A rate with three digits at least."""
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.3g}"


class Metrics:
    """The outputs of a run on rank 0; every method does nothing on the other ranks.

    Args:
        folder: of the run.
        config: what to write and show.
        total_steps: length of the run.
        first_step: steps taken before, by the run that is resumed.
        active: whether this is rank 0.
        run: id of the run.
        sync: rows that are rewritten are on the disk before the old ones go.

    Raises:
        ConfigError: the rows that are there are another run's.
    """

    def __init__(
        self,
        folder: Path,
        config: LoggingConfig,
        total_steps: int,
        first_step: int,
        active: bool,
        *,
        run: str = "",
        sync: bool = True,
    ) -> None:
        self._active = active
        self._bar = None
        if not active:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._rows = Rows(folder / "metrics.jsonl", run, first_step, sync=sync)
        if config.progress:
            from tqdm import tqdm

            self._bar = tqdm(
                total=total_steps,
                initial=first_step,
                unit="step",
                dynamic_ncols=True,
                # A log file is not redrawn: a line every so often is enough there.
                mininterval=0.5 if sys.stderr.isatty() else 20,
            )
        self.say(*self._rows.notes)
        self._sinks = Sinks(config, folder, run, first_step, self.say)

    def advance(self, steps: int = 1) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(steps)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars of a step; the ones a person watches go to the bar too. What cannot be
        written now is kept and written later; a line says so once."""
        if not self._active:
            return
        self._write(json.dumps({"step": step, "time": round(time.time(), 3), **values}))
        self._sinks.log(step, values)
        if self._bar is not None and "loss" in values:
            self._bar.set_postfix_str(
                f"loss {values['loss']:.3f}, {rate(values['images_per_second'])} images/s, "
                f"scale {values['logit_scale']:.1f}, lr {values['lr']:.1e}",
                refresh=False,
            )

    def show(self, step: int, pictures: Sequence[Path]) -> None:
        """Show pictures in the services that have a place for them.

        Args:
            step: that they are of.
            pictures: PNG files; a picture's tag is ``eval/`` and its name.
        """
        if self._active and pictures:
            self._sinks.show(step, {f"eval/{path.stem}": path for path in pictures})

    @contextmanager
    def timed(self, step: int, name: str) -> Iterator[None]:
        """Write the seconds that something takes.

        Args:
            step: that it belongs to.
            name: of the scalar.
        """
        began = time.monotonic()
        yield
        self.log(step, {name: time.monotonic() - began})

    def describe(self, config: Mapping[str, Any], command: str) -> None:
        """Show what the run was asked for, in the services.

        Args:
            config: the whole configuration, nested.
            command: as it was typed.
        """
        if self._active:
            self._sinks.describe(config, command)

    def say(self, *lines: Any) -> None:
        """Print above the bar."""
        if not self._active:
            return
        for line in lines:
            if self._bar is not None:
                self._bar.write(str(line))
            else:
                print(line, flush=True)

    def close(self) -> list[str]:
        """Flush and close everything; what is said after it is printed as it is.

        Returns:
            A line where rows are lost; it was said.
        """
        if not self._active:
            return []
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        self._sinks.close()
        lost = self._rows.close()
        self.say(*lost)
        return lost

    def _write(self, row: str) -> None:
        self.say(*self._rows.write(row))
