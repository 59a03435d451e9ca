"""torch's process group and DeepSpeed start."""

import time
from collections.abc import Mapping
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from clipfast.doctor.check import Check, Seen
from clipfast.doctor.checks.shared_memory import SHORT
from clipfast.doctor.finding import Finding, ok
from clipfast.doctor.situation import Situation
from clipfast.engine.launch import set_products, start
from clipfast.env import version

# DeepSpeed compiles a helper on its first start on a CPU.
_LIMIT = 180.0


def terms(situation: Situation) -> Seen:
    """The kind of device; a rank without a plan, a device of its own or room
    keeps out."""
    for check in ("options", "devices"):
        if problem := situation.problems.get(check):
            return {
                "refused": f"see check {'flags' if check == 'options' else check}: {problem[:60]}"
            }
    if situation.notes.get(SHORT):
        return {"refused": "see check shm"}
    return {"device type": situation.device.type}


def look(situation: Situation) -> Seen:
    """Start as a run does; without DeepSpeed, torch's group alone."""
    began = time.perf_counter()
    uses_tf32 = situation.plan is not None and situation.plan.uses_tf32
    if version("deepspeed") is None:
        if situation.on_gpu:
            torch.cuda.set_device(situation.device)
            set_products(uses_tf32)
        _start_plain(situation)
    else:
        start(situation.process, uses_tf32)
    situation.notes["group"] = True
    total = torch.ones((), device=situation.device)
    dist.all_reduce(total)
    assert int(total.item()) == situation.process.world_size, "ranks do not add up"
    backend = dist.get_backend()
    return {"seconds": time.perf_counter() - began, "backend": backend, "nccl": _nccl(backend)}


def _start_plain(situation: Situation) -> None:
    backend = "nccl" if situation.on_gpu else "gloo"
    world_size, limit = situation.process.world_size, timedelta(seconds=_LIMIT)
    if world_size == 1:
        store = HashStore()
        dist.init_process_group(backend, store=store, rank=0, world_size=1, timeout=limit)
    else:
        dist.init_process_group(backend, timeout=limit)


def _nccl(backend: str) -> str:
    if backend != "nccl":
        return ""
    return " " + ".".join(map(str, torch.cuda.nccl.version()))


def judge(situation: Situation, seen: Mapping[int, Seen]) -> list[Finding]:
    """How long it took."""
    first = next(iter(seen.values()))
    seconds = max(each["seconds"] for each in seen.values())
    note = ", DeepSpeed's helper compiled among it" if seconds > 20 and not situation.on_gpu else ""
    return [ok(f"{first['backend']}{first['nccl']}, started in {seconds:.1f} s{note}")]


GROUP = Check("group", look, judge, limit=_LIMIT, terms=terms)


def needs_group(situation: Situation) -> Seen | None:
    """What a check that needs the group answers where there is none."""
    return None if situation.notes.get("group") else {"refused": "there is no process group"}
