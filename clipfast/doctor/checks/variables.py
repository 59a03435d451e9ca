"""Environment variables that bite."""

import os
from collections.abc import Mapping

import torch

from clipfast.doctor.check import Check, Seen
from clipfast.doctor.examination import differences
from clipfast.doctor.finding import Finding, ok, warning
from clipfast.doctor.situation import Situation

_FAMILIES = ("NCCL_", "TORCH_NCCL_", "PYTORCH_", "CLIPFAST_", "TRITON_", "TORCHINDUCTOR_", "GLOO_")
_ALONE = ("CUDA_VISIBLE_DEVICES", "CUDA_LAUNCH_BLOCKING", "CUDA_DEVICE_MAX_CONNECTIONS")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TORCH_DISTRIBUTED_DEBUG")
# Name, value, what it does.
_BITES = {
    (
        "NCCL_P2P_DISABLE",
        "1",
    ): "GPUs of a node exchange through the host's memory, many times slower",
    ("NCCL_SHM_DISABLE", "1"): "ranks of a node exchange over the network",
    ("NCCL_IB_DISABLE", "1"): "nodes exchange over TCP, not InfiniBand",
    ("NCCL_BLOCKING_WAIT", "1"): "the host waits for every collective",
    ("TORCH_NCCL_BLOCKING_WAIT", "1"): "the host waits for every collective",
    ("CUDA_LAUNCH_BLOCKING", "1"): "the host waits for every kernel",
    ("CUDA_DEVICE_MAX_CONNECTIONS", "1"): "collectives do not run beside products",
    ("TORCH_DISTRIBUTED_DEBUG", "DETAIL"): "every collective is checked by another one",
    ("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"): "every allocation waits for the GPU",
    ("TRITON_INTERPRET", "1"): "Triton's kernels are interpreted, thousands of times slower",
}
# Interfaces are called otherwise on other nodes.
_MAY_DIFFER = ("CUDA_VISIBLE_DEVICES", "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def look(situation: Situation) -> Seen:
    """Those that are set, the threads of torch, and the cores of this rank."""
    names = [n for n in os.environ if n.startswith(_FAMILIES) or n in (*_ALONE, *_THREADS)]
    return {
        "set": {name: os.environ[name] for name in sorted(names)},
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)),
        "host": situation.host,
        "local_ranks": situation.process.local_world_size,
        "on_gpu": situation.on_gpu,
    }


def judge(situation: Situation, seen: Mapping[int, Seen]) -> list[Finding]:
    """What slows a run, and what is not the same everywhere."""
    found = []
    for (name, value), effect in _BITES.items():
        ranks = [rank for rank, each in seen.items() if each["set"].get(name, "").upper() == value]
        if ranks:
            found.append(warning(f"{name}={value}: {effect}", f"unset {name}", ranks))
    common = {
        rank: {n: v for n, v in each["set"].items() if n not in _MAY_DIFFER}
        for rank, each in seen.items()
    }
    for text, ranks in differences(common):
        found.append(warning(text, "Set it on every node alike, or nowhere", ranks))
    found += _threads(seen)
    names = ", ".join(f"{n}={v}" for n, v in next(iter(seen.values()))["set"].items())
    return found or [ok(f"set: {names or 'none of those that matter'}")]


def _threads(seen: Mapping[int, Seen]) -> list[Finding]:
    few, many = [], []
    for rank, each in seen.items():
        text = each["set"].get("OMP_NUM_THREADS", "")
        if not text.isdecimal():
            continue
        share = max(1, each["cores"] // each["local_ranks"])
        if not each["on_gpu"] and int(text) < share:
            few.append(rank)
        if int(text) > share:
            many.append(rank)
    found = []
    for ranks, what in ((few, "fewer"), (many, "more")):
        if ranks:
            each = seen[ranks[0]]
            share = max(1, each["cores"] // each["local_ranks"])
            found.append(
                warning(
                    f"OMP_NUM_THREADS={each['set']['OMP_NUM_THREADS']} threads are {what} than a "
                    f"rank's share of {share} core(s)",
                    "unset OMP_NUM_THREADS: clipfast takes a rank's share. torchrun sets it to 1; "
                    f"start it with OMP_NUM_THREADS={share}",
                    ranks,
                )
            )
    return found


VARIABLES = Check("variables", look, judge)
