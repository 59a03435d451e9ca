"""torchrun under a scheduler: signals go on to the ranks, and the exit code is that of a rank.

    python -m clipfast.torchrun --nnodes 8 --nproc-per-node 8 ... recipes/vit_b32.py ...

It takes torchrun's arguments and is torchrun, but for two things that Slurm and Kubernetes need:

- SIGTERM, SIGINT, SIGUSR1 and SIGUSR2 are passed on to the ranks, and nothing more. torchrun kills
  the ranks 30 seconds after SIGTERM, and a large checkpoint can take longer. SIGUSR1 ends it.
- It ends with the exit code of the first rank that failed on this node: 75 for a run that a signal
  ended and that can go on, 2 for options that cannot work. torchrun's is 1 in every case.
"""

import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
# What torchrun handles by itself of what it would handle.
_LEFT_TO_TORCHRUN = "SIGHUP,SIGQUIT"
_AGAIN_SECONDS = 1.0
_KILLED = 128


def main(arguments: Sequence[str] | None = None) -> int:
    """Start this node's ranks and wait for them.

    Args:
        arguments: torchrun's; None takes ``sys.argv``.

    Returns:
        0, or the first failed rank's exit code; 128 and the signal's number where one killed it.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    _PassOn().listen()
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        run.main(["--signals-to-handle", _LEFT_TO_TORCHRUN, *given])
    except ChildFailedError as failed:
        code = failed.get_first_failure()[1].exitcode
        return code if code > 0 else _KILLED - code
    return 0


class _PassOn:
    """Passes signals on to this process's children, and to those that torchrun starts later."""

    def __init__(self) -> None:
        self._last = 0
        self._told: set[int] = set()

    def listen(self) -> None:
        """From now on."""
        for number in _PASSED_ON:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        is_first = not self._last
        self._last = number
        self._told.clear()
        self._tell()
        if is_first:
            threading.Thread(
                target=self._keep_telling, name="clipfast-pass-on", daemon=True
            ).start()

    def _keep_telling(self) -> None:
        # torchrun starts ranks again that have ended, where --max-restarts allows it.
        while True:
            threading.Event().wait(_AGAIN_SECONDS)
            self._tell()

    def _tell(self) -> None:
        import psutil

        for child in psutil.Process().children():
            if child.pid not in self._told:
                self._told.add(child.pid)
                with suppress(ProcessLookupError):
                    os.kill(child.pid, self._last)


if __name__ == "__main__":
    sys.exit(main())
