"""What is installed, and that every rank has the same."""

from collections.abc import Mapping

from clipfast.doctor.check import Check, Seen
from clipfast.doctor.examination import differences
from clipfast.doctor.finding import Finding, failure, ok, warning
from clipfast.doctor.situation import Situation
from clipfast.env import driver_version, stamp

# Without it: what does not work. All of them come with clipfast[train].
_NEEDED = {
    "deepspeed": "no training",
    "DALI": "no shard is decoded; --data.train synthetic trains",
    "tokenizers": "no caption becomes tokens; --data.train synthetic trains",
    "ftfy": "no caption becomes tokens; --data.train synthetic trains",
}
# What decides the bits that ranks exchange.
_SAME = ("clipfast", "commit", "torch", "cuda", "deepspeed")


def look(situation: Situation) -> Seen:
    """`clipfast.env.stamp`, and the driver where torch sees no GPU."""
    found = stamp()
    seen = {key: found[key] for key in ("clipfast", "commit", "platform", "python", "versions")}
    device = found["device"]
    driver = device["driver"] or driver_version()
    return {**seen, "device": device, "driver": driver}


def judge(situation: Situation, seen: Mapping[int, Seen]) -> list[Finding]:
    """Missing packages, and versions that differ."""
    first = next(iter(seen.values()))
    versions, device = first["versions"], first["device"]
    gpus = device["gpus"]
    found = []
    for part, without in _NEEDED.items():
        ranks = [rank for rank, each in seen.items() if each["versions"][part] is None]
        if ranks:
            make = failure if part == "deepspeed" else warning
            found.append(
                make(f"{part} is absent: {without}", "pip install 'clipfast[train]'", ranks)
            )
    blind = [rank for rank, each in seen.items() if each["driver"] and not each["device"]["gpus"]]
    if blind:
        found.append(
            failure(
                f"there is an NVIDIA driver ({seen[blind[0]]['driver']}), and torch "
                f"{versions['torch']} sees no GPU",
                "Install a torch that is built for CUDA, no newer than the driver; look at "
                "CUDA_VISIBLE_DEVICES",
                blind,
            )
        )
    decisive = {rank: _decisive(each) for rank, each in seen.items()}
    for text, ranks in differences(decisive):
        found.append(failure(text, "Install the same on every node", ranks))
    cards = f"{len(gpus)} x {gpus[0]['name']}" if gpus else device["cpu"]
    parts = [f"{name} {versions[name]}" for name in ("torch", "triton", "deepspeed", "DALI")]
    about = f"clipfast {first['clipfast']}, Python {first['python']}, {', '.join(parts)}; {cards}"
    return [*found, *([] if found else [ok(about)])]


def _decisive(seen: Seen) -> Seen:
    known = {**seen["versions"], **seen, "cuda": seen["device"]["cuda"]}
    python = ".".join(seen["python"].split(".")[:2])
    return {"Python": python, **{name: known[name] for name in _SAME}}


INSTALLED = Check("installed", look, judge, limit=30)
