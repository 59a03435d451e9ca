"""That each rank has a GPU of its own, and that nobody else is on it."""

import os
from collections.abc import Mapping
from typing import Any

import torch

from clipfast.doctor.check import Check, Seen
from clipfast.doctor.finding import Finding, failure, ok, ranks_in_words, size, warning
from clipfast.doctor.situation import Situation

_TAKEN_SHARE = 0.05


def identity(device: torch.device) -> dict[str, str]:
    """What tells one GPU from another, whatever its index in a process; empty on a CPU."""
    if device.type != "cuda":
        return {}
    card: Any = torch.cuda.get_device_properties(device)
    bus = f"{card.pci_domain_id:04x}:{card.pci_bus_id:02x}:{card.pci_device_id:02x}"
    return {"name": card.name, "uuid": str(card.uuid), "pci": bus}


def look(situation: Situation) -> Seen:
    """This rank's GPU, or that it has none."""
    process, device = situation.process, situation.device
    seen: Seen = {
        "host": situation.host,
        "local_rank": process.local_rank,
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "problem": situation.problems.get("devices", ""),
        **identity(device),
    }
    if situation.on_gpu:
        seen["free"], seen["total"] = torch.cuda.mem_get_info(device)
    return seen


def judge(situation: Situation, seen: Mapping[int, Seen]) -> list[Finding]:
    """Ranks that share a GPU, or have none, or have one that is in use."""
    found = []
    for rank, each in seen.items():
        if each["problem"]:
            words, _, remedy = each["problem"].partition(". ")
            found.append(failure(words, remedy, [rank]))
    found += _shared(seen)
    with_gpu = [rank for rank, each in seen.items() if "uuid" in each]
    if with_gpu and len(with_gpu) < len(seen):
        without = [rank for rank in seen if rank not in with_gpu]
        found.append(
            failure(
                f"some ranks have a GPU, others none: {ranks_in_words(without)}",
                "Look at the driver and at CUDA_VISIBLE_DEVICES on their node",
                without,
            )
        )
    for rank in with_gpu:
        each = seen[rank]
        taken = each.get("total", 0) - each.get("free", 0)
        if taken > _TAKEN_SHARE * each.get("total", 0):
            found.append(
                warning(
                    f"{size(taken)} of {size(each['total'])} of {each['name']} {each['pci']} on "
                    f"{each['host']} are in use already",
                    "nvidia-smi shows by whom; a run that was killed may have left a process",
                    [rank],
                )
            )
    names = {seen[rank]["name"] for rank in with_gpu}
    if len(names) > 1:
        kinds = ", ".join(sorted(names))
        found.append(
            warning(f"GPUs of several kinds: {kinds}", "Every step takes as long as the slowest")
        )
    if found:
        return found
    if not with_gpu:
        return [ok("no GPU: ranks share the cores of their node")]
    return [ok(f"{len(with_gpu)} rank(s), each on a GPU of its own: {', '.join(sorted(names))}")]


def _shared(seen: Mapping[int, Seen]) -> list[Finding]:
    """Ranks of one node that compute on one GPU, or would."""
    groups: dict[tuple[str, str], list[int]] = {}
    for rank, each in seen.items():
        which = f"GPU {each['uuid']} ({each['pci']})" if "uuid" in each else _index(each)
        groups.setdefault((each["host"], which), []).append(rank)
    return [
        failure(
            f"{ranks_in_words(ranks)} on {host} have the same device: {which}",
            "Each rank of a node needs a LOCAL_RANK of its own, counted from 0, and a "
            "CUDA_VISIBLE_DEVICES that names each GPU once. deepspeed --num_gpus N and torchrun "
            "--nproc-per-node N set them; nothing else should",
            ranks,
        )
        for (host, which), ranks in groups.items()
        if len(ranks) > 1
    ]


def _index(seen: Seen) -> str:
    """The GPU that a rank would take by its variables."""
    entries = (seen["visible"] or "").split(",")
    local = seen["local_rank"]
    if seen["visible"] and local < len(entries):
        return f"entry {entries[local].strip()} of CUDA_VISIBLE_DEVICES={seen['visible']}"
    return f"LOCAL_RANK={local}"


DEVICES = Check("devices", look, judge)
