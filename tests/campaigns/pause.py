"""How long training pauses for a checkpoint that it waits for, and for one in the background.

    python -m tests.campaigns.pause                  ViT-B/32, float32, ZeRO stage 1: 2.4 GB
    python -m tests.campaigns.pause --model ViT-tiny --rounds 2

In each round the same state is saved both ways, and steps are taken while the second is written.
Both must have the same hashes, else there are no times and the status is 1. The folder is to lie on
the disk that is meant.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipfast.checkpoint import Manifest
from clipfast.engine import Config, DataConfig, ModelOptions, ZeroConfig
from clipfast.engine.builders import Builders
from clipfast.engine.checkpoint import Checkpoints
from clipfast.engine.launch import current_process, start
from clipfast.engine.plan import decide
from clipfast.engine.step import train_step


@dataclass
class Times:
    """Seconds of each round, and bytes.

    Attributes:
        step: of a step with nothing beside it.
        waited: of the pause for a checkpoint that training waits for.
        paused: of the pause for one in the background.
        step_beside: of a step while it is written.
        until_there: from the beginning of one in the background to the end of it.
        size: of a checkpoint, bytes.
        memory: resident before the first copy and after it, bytes.
    """

    step: list[float] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)
    paused: list[float] = field(default_factory=list)
    step_beside: list[float] = field(default_factory=list)
    until_there: list[float] = field(default_factory=list)
    size: int = 0
    memory: tuple[int, int] = (0, 0)


class Trial:
    """An engine that trains on random pairs and saves.

    Args:
        model: its name.
        batch: pairs per step.
        folder: to save into.
    """

    def __init__(self, model: str, batch: int, folder: Path) -> None:
        config = Config(
            model=ModelOptions(model, compile="none"),
            data=DataConfig(train=("synthetic:100000",)),
            zero=ZeroConfig(1),
            batch_size=batch,
            precision="fp32",
        )
        process = current_process()
        start(process)
        self._plan = decide(config, process)
        builders = Builders()
        self._engine: Any = builders.build_engine(self._plan)
        self._batches = iter(builders.loader(self._plan))
        self._saved = Checkpoints(folder, 2, process, self._plan.layout)
        self._steps = 0

    def measure(self, rounds: int, between: int) -> Times:
        """Save both ways in turn.

        Args:
            rounds: number of each; the first of the background pays for its memory.
            between: steps before each pair.

        Raises:
            ValueError: the two hold other bytes.
        """
        times = Times()
        self._step()
        for number in range(rounds):
            times.step += [self._step() for _ in range(between)]
            before = _resident()
            waited, path = _timed(lambda: self._saved.save(self._engine, self._steps, {}))
            began = time.monotonic()
            paused, _ = _timed(lambda: self._saved.saving.begin(self._engine, self._steps + 1, {}))
            if number == 0:
                times.memory = (before, _resident())
            other, beside = None, []
            while other is None:
                beside.append(self._step())
                other = self._saved.saving.advance(self._saved.saving.progress)
            times.until_there.append(time.monotonic() - began)
            times.waited.append(waited)
            times.paused.append(paused)
            times.step_beside += beside
            times.size = _require_same(path, other)
        self._saved.saving.close()
        return times

    def _step(self) -> float:
        batch = next(self._batches)
        seconds, _ = _timed(
            lambda: train_step(self._engine, batch, self._plan.micro_batches, self._plan.objective)
        )
        self._steps += 1
        return seconds


def _timed(act: Callable[[], Any]) -> tuple[float, Any]:
    began = time.monotonic()
    made = act()
    return time.monotonic() - began, made


def _resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def _require_same(path: Path, other: Path) -> int:
    """Bytes of two checkpoints whose files are the same."""
    first, second = Manifest.read(path), Manifest.read(other)
    if first is None or second is None or first.files != second.files:
        raise ValueError(f"{path} and {other} hold other bytes of the same state")
    return first.size


def table(times: Times) -> str:
    """In Markdown."""
    rows = {
        "a step with nothing beside it": times.step,
        "pause, training waits": times.waited,
        "pause, in the background, the first": times.paused[:1],
        "pause, in the background, later": times.paused[1:],
        "a step while it is written": times.step_beside,
        "until it is on the disk, in the background": times.until_there,
    }
    lines = ["| seconds | median | least | most | times |", "| --- | ---: | ---: | ---: | ---: |"]
    lines += [f"| {name} | {_numbers(found)} |" for name, found in rows.items() if found]
    before, after = times.memory
    return "\n".join(
        [
            *lines,
            "",
            f"{times.size / 1e9:.2f} GB each, both with the same hashes; resident memory "
            f"{before / 1e9:.2f} GB before the first copy, {after / 1e9:.2f} GB after it",
        ]
    )


def _numbers(found: Sequence[float]) -> str:
    median = statistics.median(found)
    return f"{median:.3f} | {min(found):.3f} | {max(found):.3f} | {len(found)}"


def main() -> int:
    """Run it.

    Returns:
        1 where the two ways hold other bytes, else 0.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="ViT-B/32")
    parser.add_argument("--batch", type=int, default=8, help="pairs per step")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--between", type=int, default=3, help="steps before each pair of saves")
    parser.add_argument("--folder", type=Path, help="to save into; a temporary one is deleted")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="clipfast-pause-", dir=options.folder) as folder:
        trial = Trial(options.model, options.batch, Path(folder, "checkpoints"))
        try:
            times = trial.measure(options.rounds, options.between)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    print(table(times))
    return 0


if __name__ == "__main__":
    sys.exit(main())
