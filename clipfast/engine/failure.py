"""How ranks fail together: one account for the run, and nothing lost.

A rank that raises ends, its connections close, and the others raise in the collective that they
wait in. Only the first has something to say.
"""

import os
import re
import socket
import sys
import time
import traceback
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import NoReturn

from clipfast.engine.environment import processes_claimed
from clipfast.engine.launch import Process
from clipfast.engine.watchdog import Watchdog
from clipfast.files import write_whole

_KEY = "clipfast/failures"
# A launcher ends all ranks as soon as one of them has failed. One that has nothing to say therefore
# waits for the one that has: as long as ranks may start apart, or as long as a traceback takes.
_STARTED_APART = 30.0
_PRINTED = 2.0
# A rank that has lost another one hears in this time from those who watch what became of it.
_TOLD = 10.0
# What gloo, NCCL, DeepSpeed and torch's store say where another rank is gone.
_LOST = re.compile(r"gloo|nccl|connection|socket|peer|recvBytes|sendBytes|store|timed? ?out", re.I)


class Turn(Enum):
    """Whether a rank that fails is the first of the run."""

    FIRST = "first"
    LATER = "later"
    UNKNOWN = "unknown"


def take_turn() -> Turn:
    """Count this rank's failure where all ranks see it.

    Returns:
        UNKNOWN where that place is gone: rank 0 holds it under some launchers, and has ended.
    """
    import torch.distributed as dist

    if not dist.is_initialized():
        return Turn.FIRST
    try:
        count = dist.distributed_c10d._get_default_store().add(_KEY, 1)
    except Exception:
        return Turn.UNKNOWN
    return Turn.FIRST if count == 1 else Turn.LATER


def fail(
    process: Process,
    error: Exception,
    log_folder: Path | None = None,
    watchdog: Watchdog | None = None,
) -> None:
    """Account for an exception that ends a rank.

    The first rank of the run returns, so that its caller raises the exception. The others end
    here, at once and with status 1 or what the watch says, and print nothing: what they met comes
    from the first.

    Args:
        process: this rank.
        error: what it met.
        log_folder: where every rank leaves its own traceback, as rank00003.log, if the folder above
            is there; None: nowhere.
        watchdog: of this rank; it knows of ranks that died without a word.
    """
    if log_folder is not None:
        _log(process, error, log_folder)
    if process.world_size == 1:
        return
    if watchdog is not None and _has_lost_a_rank(error) and (told := watchdog.verdict(_TOLD)):
        time.sleep(_PRINTED)
        _leave_at_once(told.status)
    turn = take_turn()
    who = f"rank {process.rank} on {socket.gethostname()}"
    if turn is Turn.FIRST:
        if watchdog is not None:
            watchdog.leaves("failed", f"failed: {type(error).__name__}: {_line(error)}", 1)
        print(f"error: {who} failed first, and the run ends:", file=sys.stderr, flush=True)
        return
    # The place to count is gone with rank 0. Where something killed it nobody has spoken yet.
    if turn is Turn.UNKNOWN and _speaks_without_rank_0(process):
        kind = type(error).__name__
        print(f"error: {who} lost rank 0: {kind}: {error}", file=sys.stderr, flush=True)
    time.sleep(_PRINTED)
    _leave_at_once(1)


def refuse(error: Exception, speaks: bool) -> NoReturn:
    """End a rank whose configuration cannot work, before the ranks have met.

    Args:
        error: the reason.
        speaks: whether this rank prints it.

    Raises:
        SystemExit: with status 2.
    """
    if speaks:
        print(f"error: {error}", file=sys.stderr, flush=True)
    leave_quietly(2, speaks)


def refuse_together(
    process: Process, error: Exception, watchdog: Watchdog | None = None
) -> NoReturn:
    """End a rank whose configuration cannot work, once the ranks have met: the first one prints.
    One of several ends at once.

    Args:
        process: this rank.
        error: the reason.
        watchdog: of this rank.

    Raises:
        SystemExit: with status 2, where there is no other rank.
    """
    if watchdog is not None:
        watchdog.leaves("refused", f"cannot go on: {_line(error)}", 2)
    turn = take_turn()
    if turn is Turn.FIRST or (turn is Turn.UNKNOWN and _speaks_without_rank_0(process)):
        print(f"error on rank {process.rank}: {error}", file=sys.stderr, flush=True)
    else:
        time.sleep(_PRINTED)
    if process.world_size > 1:
        _leave_at_once(2)
    raise SystemExit(2)


def leave_quietly(status: int, speaks: bool) -> NoReturn:
    """End this rank; one that has not spoken waits for the one that does.

    Raises:
        SystemExit: always.
    """
    if not speaks and processes_claimed() > 1:
        time.sleep(_STARTED_APART)
    raise SystemExit(status)


def _has_lost_a_rank(error: Exception) -> bool:
    import torch.distributed as dist

    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and _LOST.search(str(error)) is not None


def _leave_at_once(status: int) -> NoReturn:
    """End without taking anything down: it may wait for a rank that is gone, and threads of gloo
    have aborted processes there, which then ended with a status of their own."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:500]


def _speaks_without_rank_0(process: Process) -> bool:
    """The first rank that is left on each node."""
    return process.local_rank == (1 if process.rank == process.local_rank else 0)


def _log(process: Process, error: Exception, log_folder: Path) -> None:
    text = "".join(traceback.format_exception(error))
    # What was met matters more than that it could not be written.
    with suppress(OSError):
        log_folder.mkdir(exist_ok=True)
        write_whole(log_folder / f"rank{process.rank:05d}.log", text.encode(errors="replace"))
