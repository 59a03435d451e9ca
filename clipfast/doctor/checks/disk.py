"""The run's folder: that it can be written, how fast, and that checkpoints have room."""

import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from clipfast.doctor.check import Check, Seen
from clipfast.doctor.finding import Finding, failure, ok, size, warning
from clipfast.doctor.situation import Situation
from clipfast.engine.state_bytes import saved_bytes
from clipfast.files import free_bytes
from clipfast.models import CLIP

_PIECE = 4 << 20
_MOST_BYTES, _MOST_SECONDS = 256 << 20, 3.0
_SLOW_BYTES_PER_SECOND = 50e6
_LEAST_TEMPORARY = 1_000_000_000


def look(situation: Situation) -> Seen:
    """On the first rank of each node: room and speed."""
    seen: Seen = {"host": situation.host}
    plan = situation.plan
    if situation.process.local_rank or plan is None:
        return seen
    folder = _existing(plan.folder)
    seen |= {"folder": str(plan.folder), "free": free_bytes(plan.folder), "error": ""}
    try:
        seen["bytes_per_second"] = _write_speed(folder)
    except OSError as error:
        seen["error"] = f"{folder}: {error.strerror or error}"
    with torch.device("meta"):
        model = CLIP(plan.architecture)
    options = plan.config.checkpoint
    # How long epochs are is not known here.
    for_good = options.kept_for_good(0, plan.config.schedule.max_steps or 0)
    # One more than is kept stands while it is written.
    seen["checkpoint"] = saved_bytes(plan, model)
    seen["needed"] = seen["checkpoint"] * (options.keep + 1 + for_good)
    temporary = tempfile.gettempdir()
    seen |= {"temporary": temporary, "temporary_free": free_bytes(temporary)}
    return seen


def judge(situation: Situation, seen: Mapping[int, Seen]) -> list[Finding]:
    """Folders that are full, slow or closed."""
    found, spoken = [], []
    for rank, each in seen.items():
        if "folder" not in each:
            continue
        where = f"{each['folder']} on {each['host']}"
        if each["error"]:
            remedy = "Give a folder that every node can write: --logging.dir"
            found.append(failure(f"{where} cannot be written: {each['error']}", remedy, [rank]))
            continue
        speed, wanted = each["bytes_per_second"], size(each["needed"])
        if each["free"] is not None and each["free"] < each["needed"]:
            found.append(
                failure(
                    f"checkpoints take {wanted} ({size(each['checkpoint'])} each), and "
                    f"{size(each['free'])} are free at {where}",
                    "Make room, keep fewer (--checkpoint.keep), or give another --logging.dir",
                    [rank],
                )
            )
        if speed < _SLOW_BYTES_PER_SECOND:
            seconds = each["checkpoint"] / speed
            found.append(
                warning(
                    f"{where} writes {size(speed)}/s: a checkpoint takes {seconds:.0f} s",
                    "Give a faster --logging.dir, or save less often (--checkpoint.every-steps)",
                    [rank],
                )
            )
        if (each["temporary_free"] or 0) < _LEAST_TEMPORARY:
            found.append(
                warning(
                    f"{size(each['temporary_free'] or 0)} free at {each['temporary']} on "
                    f"{each['host']}, where compilers write",
                    "Make room, or set TMPDIR",
                    [rank],
                )
            )
        free = size(each["free"]) if each["free"] is not None else "unknown"
        spoken.append(f"{where}: {free} free, {wanted} for checkpoints, writes {size(speed)}/s")
    return found or [ok("; ".join(spoken) or "not looked at: there is no plan of a run")]


def _existing(folder: Path) -> Path:
    """The nearest folder that is there: nothing is left behind."""
    folder = folder.absolute()
    while not folder.is_dir():
        folder = folder.parent
    return folder


def _write_speed(folder: Path) -> float:
    """Bytes per second until they are on the disk."""
    data, written = os.urandom(_PIECE), 0
    with tempfile.TemporaryFile(dir=folder) as file:
        began = time.perf_counter()
        while written < _MOST_BYTES and time.perf_counter() - began < _MOST_SECONDS:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            written += len(data)
        return written / (time.perf_counter() - began)


DISK = Check("disk", look, judge, limit=30)
