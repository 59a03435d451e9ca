"""The cheapest run there is, on ranks one of which does as it is told: dies, hangs, disagrees."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from clipfast.engine import main
from clipfast.engine.builders import Builders, build_loader, build_model
from tests.campaigns.recipe import config


@dataclass(frozen=True)
class Fault:
    """What goes wrong, as the variable CLIPFAST_FAULT says: "rank 1, step 5, data, sleep".

    Attributes:
        rank: where.
        step: after how many steps.
        part: data, forward, start, save or evaluation.
        how: sleep, stop, kill, exit, raise, hold (native code with the interpreter's lock), memory,
            or what differs: weights, data.
    """

    rank: int
    step: int
    part: str
    how: str


def fault() -> Fault | None:
    """The one of this rank."""
    text = os.environ.get("CLIPFAST_FAULT", "")
    if not text:
        return None
    rank, step, part, how = text.split(", ")
    made = Fault(int(rank.split()[1]), int(step.split()[1]), part, how)
    is_mine = made.rank == int(os.environ.get("RANK", "0"))
    # A run that was started again by its launcher goes on undisturbed.
    again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    return made if is_mine and not again else None


def happen(how: str) -> None:
    """Go wrong."""
    acts: dict[str, Callable[[], object]] = {
        "sleep": lambda: time.sleep(1000),
        "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
        "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "fault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
        "exit": lambda: os._exit(7),
        "raise": lambda: (_ for _ in ()).throw(RuntimeError("broken here")),
        "hold": _hold,
        "term": lambda: os.kill(os.getpid(), signal.SIGTERM),
    }
    print(f"fault {how} at {time.monotonic():.3f}", file=sys.stderr, flush=True)
    acts[how]()


def _hold() -> None:
    """Wait for ever in native code, with the interpreter's lock: a lock is taken twice."""
    native, lock = ctypes.PyDLL(None), ctypes.create_string_buffer(64)
    native.pthread_mutex_lock(lock)
    native.pthread_mutex_lock(lock)


def builders(wanted: Fault | None) -> Builders:
    """Parts of the run, one of which goes wrong."""
    if wanted is None:
        return Builders()
    calls = {"data": 0, "forward": 0}

    def come(part: str) -> None:
        calls[part] += 1
        if part == wanted.part and calls[part] == wanted.step + 1:
            happen(wanted.how)

    class Loader:
        """The run's, with the fault before a batch."""

        def __init__(self, inner: Any) -> None:
            self._inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

        def __iter__(self) -> Iterator[Any]:
            for batch in self._inner:
                come("data")
                yield batch

        def state_dict(self) -> dict[str, Any]:
            state = dict(self._inner.state_dict())
            return {**state, "shards": "others"} if wanted.how == "data" else state

    def loader(plan: Any) -> Any:
        if wanted.part == "start" and wanted.how not in ("weights", "data"):
            happen(wanted.how)
        return Loader(build_loader(plan))

    def model(plan: Any) -> Any:
        if wanted.how == "weights":
            torch.manual_seed(123)
        made = build_model(plan)
        made.register_forward_pre_hook(lambda *_: come("forward"))
        return made

    return Builders(loader=loader, model=model)


if __name__ == "__main__":
    found = fault()
    asked = config()
    if found is not None and found.how == "batch":
        asked = replace(asked, batch_size=2 * asked.batch_size)
    main(asked, builders=builders(found))
