"""What a run shows and writes: progress bar, metrics.jsonl, TensorBoard. Rank 0 alone acts."""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from clipfast.engine.config import LoggingConfig


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
    """

    def __init__(
        self, folder: Path, config: LoggingConfig, total_steps: int, first_step: int, active: bool
    ) -> None:
        self._active = active
        self._bar = None
        self._board = None
        if not active:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._file = _open_rows(folder / "metrics.jsonl", first_step)
        if config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder), purge_step=first_step + 1)
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

    def advance(self, steps: int = 1) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(steps)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars of a step; the ones a person watches go to the bar too."""
        if not self._active:
            return
        self._file.write(json.dumps({"step": step, "time": round(time.time(), 3), **values}) + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name if "/" in name else f"train/{name}", value, step)
        if self._bar is not None and "loss" in values:
            self._bar.set_postfix_str(
                f"loss {values['loss']:.3f}, {rate(values['images_per_second'])} images/s, "
                f"scale {values['logit_scale']:.1f}, lr {values['lr']:.1e}",
                refresh=False,
            )

    def say(self, *lines: Any) -> None:
        """Print above the bar."""
        if not self._active:
            return
        for line in lines:
            if self._bar is not None:
                self._bar.write(str(line))
            else:
                print(line, flush=True)

    def close(self) -> None:
        """Flush and close everything; what is said after it is printed as it is."""
        if not self._active:
            return
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        if self._board is not None:
            self._board.close()
            self._board = None
        self._file.close()


def _open_rows(path: Path, first_step: int) -> TextIO:
    """Append to the rows of the run that is resumed, without those after its checkpoint."""
    kept = []
    if first_step and path.exists():
        rows = path.read_text().splitlines()
        # A killed run may have left half a line.
        kept = [row for row in rows if row.endswith("}") and json.loads(row)["step"] <= first_step]
    path.write_text("".join(row + "\n" for row in kept))
    return open(path, "a", buffering=1)
