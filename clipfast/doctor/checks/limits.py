"""What the system lets a process have: open files, locked memory, processes."""

import resource
from collections.abc import Mapping

from clipfast.doctor.check import Check, Seen
from clipfast.doctor.finding import Finding, failure, ok, warning
from clipfast.doctor.situation import Situation

# A rank holds sockets to others, shards, and what torch.compile opens.
_FEWEST_FILES, _ENOUGH_FILES = 256, 4096
_ENOUGH_PROCESSES = 1024


def look(situation: Situation) -> Seen:
    """Soft limits; -1 means none."""
    names = {"files": "NOFILE", "locked_bytes": "MEMLOCK", "processes": "NPROC"}
    return {
        name: resource.getrlimit(getattr(resource, f"RLIMIT_{limit}"))[0]
        for name, limit in names.items()
    }


def judge(situation: Situation, seen: Mapping[int, Seen]) -> list[Finding]:
    """Limits that end a run later."""
    found = []
    for rank, each in seen.items():
        files, processes, locked = each["files"], each["processes"], each["locked_bytes"]
        if 0 <= files < _ENOUGH_FILES:
            make = failure if files < _FEWEST_FILES else warning
            found.append(
                make(
                    f"{files} open files at most (ulimit -n)",
                    f"ulimit -n {_ENOUGH_FILES}, or more; in a container --ulimit nofile",
                    [rank],
                )
            )
        if 0 <= processes < _ENOUGH_PROCESSES:
            found.append(
                warning(
                    f"{processes} processes and threads at most (ulimit -u)",
                    f"ulimit -u {_ENOUGH_PROCESSES}, or more",
                    [rank],
                )
            )
        if situation.on_gpu and situation.process.world_size > 1 and locked >= 0:
            found.append(
                warning(
                    f"{locked} bytes of locked memory at most (ulimit -l): InfiniBand locks "
                    "buffers and fails beyond that",
                    "ulimit -l unlimited; in a container --ulimit memlock=-1",
                    [rank],
                )
            )
    first = next(iter(seen.values()))
    return found or [ok(f"{first['files']} open files, {_words(first['processes'])} processes")]


def _words(limit: int) -> str:
    return "any number of" if limit < 0 else str(limit)


LIMITS = Check("limits", look, judge)
