"""The cheapest run there is, on ranks one of which does as it is told: dies, hangs, disagrees."""

import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

# Beside this file, which is started as a script.
from recipe import config

from clipfast.engine import main
from clipfast.engine.builders import Builders, build_loader, build_model


@dataclass(frozen=True)
class Fault:
    """What goes wrong, as the variable CLIPFAST_FAULT says: "rank 1, step 5, data, sleep".

    Attributes:
        rank: where.
        step: after how many steps.
        part: data, forward, evaluation, or start: while the run is built.
        how: kill, fault, exit, raise, sleep, stop, hold (native code with the interpreter's lock),
            term, or what differs: batch, weights, shards.
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


def _hold() -> None:
    """Wait for ever in native code, with the interpreter's lock: a lock is taken twice."""
    native, lock = ctypes.PyDLL(None), ctypes.create_string_buffer(64)
    native.pthread_mutex_lock(lock)
    native.pthread_mutex_lock(lock)


def _raise() -> None:
    raise ValueError("broken here")


_ACTS: dict[str, Callable[[], object]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "fault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "exit": lambda: os._exit(7),
    "raise": _raise,
    "sleep": lambda: time.sleep(1000),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "hold": _hold,
    "term": lambda: os.kill(os.getpid(), signal.SIGTERM),
}


def happen(how: str) -> None:
    """Go wrong, and say when: seconds of the clock that all processes of a machine share."""
    # The start of a run hides what is printed.
    with open(os.environ["CLIPFAST_FAULT_AT"], "w") as file:
        file.write(str(time.monotonic()))
    _ACTS[how]()


def builders(wanted: Fault | None) -> Builders:
    """Parts of the run, one of which does what is wanted."""
    if wanted is None:
        return Builders()
    calls = {"data": 0, "forward": 0, "evaluation": 0}

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
            return {**state, "shards": "others"} if wanted.how == "shards" else state

    def loader(plan: Any) -> Any:
        if wanted.part == "start" and wanted.how in _ACTS:
            happen(wanted.how)
        return Loader(build_loader(plan))

    def model(plan: Any) -> Any:
        if wanted.how == "weights":
            torch.manual_seed(123)
        made = build_model(plan)
        made.register_forward_pre_hook(
            lambda module, *_: come("forward" if module.training else "evaluation")
        )
        return made

    return Builders(loader=loader, model=model)


if __name__ == "__main__":
    found = fault()
    asked = config()
    if found is not None and found.how == "batch":
        asked = replace(asked, batch_size=2 * asked.batch_size)
    main(asked, builders=builders(found))
