"""Room in /dev/shm: what ranks of a node exchange lies there."""

import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from clipfast.doctor.check import Check, Seen
from clipfast.doctor.finding import Finding, failure, ok, size, warning
from clipfast.doctor.situation import Situation

FOLDER = Path("/dev/shm")
# DeepSpeed's all-reduce buffer on a CPU, of each rank; measured, DeepSpeed 0.19.
_CPU_BYTES_PER_RANK = 66_000_000
# NCCL's segments between two neighbours, each way; measured by nobody here: its error messages name
# 9.6 MB a segment. A container's default of 64 MB is too little for eight ranks.
_GPU_BYTES_PER_RANK = 20_000_000
_COMFORTABLE = 1_000_000_000
_SHOWN = 3
# Of the notes of a situation.
SHORT = "shared memory is short"


def needed_bytes(situation: Situation) -> int:
    """What the ranks of this node put there."""
    ranks = situation.process.local_world_size
    if ranks == 1 and situation.on_gpu:
        return 0
    return ranks * (_GPU_BYTES_PER_RANK if situation.on_gpu else _CPU_BYTES_PER_RANK)


def look(situation: Situation) -> Seen:
    """On the first rank of each node: free bytes, whether they can be had, and who has the rest."""
    seen: Seen = {"host": situation.host, "folder": str(FOLDER)}
    if situation.process.local_rank:
        return seen
    status = os.statvfs(FOLDER)
    seen |= {
        "total": status.f_blocks * status.f_frsize,
        "free": status.f_bavail * status.f_frsize,
        "needed": needed_bytes(situation),
        "error": "",
        "files": _largest(),
    }
    if seen["free"] >= seen["needed"] > 0:
        # Free bytes of a file system are none where the memory behind them has a limit.
        try:
            with tempfile.TemporaryFile(dir=FOLDER) as file:
                os.posix_fallocate(file.fileno(), 0, seen["needed"])
        except OSError as error:
            seen["error"] = error.strerror or str(error)
    # Who writes where there is no room is ended by a signal.
    situation.notes[SHORT] = seen["free"] < seen["needed"] or bool(seen["error"])
    return seen


def judge(situation: Situation, seen: Mapping[int, Seen]) -> list[Finding]:
    """Nodes without room."""
    found, spoken = [], []
    for rank, each in seen.items():
        if "free" not in each:
            continue
        files = "; the largest files there: " + ", ".join(each["files"]) if each["files"] else ""
        where = f"{each['folder']} on {each['host']}"
        remedy = (
            "Delete what ended runs have left there, or make it larger: mount -o "
            "remount,size=8G /dev/shm; docker run --shm-size 8g, or --ipc host"
        )
        free, needed = size(each["free"]), size(each["needed"])
        if each["free"] < each["needed"] or each["error"]:
            why = f" ({each['error']})" if each["error"] else ""
            found.append(
                failure(
                    f"{where} has {free} free of {size(each['total'])}{why}; ranks of this node "
                    f"need {needed}{files}",
                    remedy,
                    [rank],
                )
            )
        elif each["free"] < _COMFORTABLE and situation.process.local_world_size > 1:
            found.append(
                warning(f"{where} has {free} free; {needed} needed{files}", remedy, [rank])
            )
        else:
            spoken.append(f"{where}: {free} free, {needed} needed")
    return found or [ok("; ".join(spoken))]


def _largest() -> list[str]:
    files = []
    for entry in os.scandir(FOLDER):
        # Other programs' files come and go.
        with suppress(FileNotFoundError):
            if entry.is_file(follow_symlinks=False):
                files.append((entry.stat(follow_symlinks=False).st_size, entry.name))
    return [f"{name} ({size(count)})" for count, name in sorted(files, reverse=True)[:_SHOWN]]


SHARED_MEMORY = Check("shm", look, judge)
