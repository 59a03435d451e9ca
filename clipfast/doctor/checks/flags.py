"""The command line: that it can work, and that every rank has the same."""

import sys
from collections.abc import Mapping
from typing import Any

from clipfast.doctor.check import Check, Seen
from clipfast.doctor.examination import differences
from clipfast.doctor.finding import Finding, failure, ok
from clipfast.doctor.situation import Situation
from clipfast.engine.differences import option_of, plain

# What need not be the same on every node.
_OWN = ("json", "only", "patience")


def look(situation: Situation) -> Seen:
    """Every option, and what is wrong with them."""
    flat = {n: v for n, v in _flat(plain(situation.config)).items() if n not in _OWN}
    plan = situation.plan
    return {
        "problem": situation.problems.get("options", ""),
        "options": {option_of(name): value for name, value in flat.items()},
        "pairs": plan.local_batch if plan else None,
        "command": sys.argv[1:],
    }


def judge(situation: Situation, seen: Mapping[int, Seen]) -> list[Finding]:
    """Options that cannot work, and those that differ."""
    found = []
    problems: dict[str, list[int]] = {}
    for rank, each in seen.items():
        if each["problem"]:
            problems.setdefault(each["problem"], []).append(rank)
    for problem, ranks in problems.items():
        about = ranks if len(ranks) < len(seen) else []
        found.append(failure(problem, "Pass what the message asks for, on every node", about))
    sound = {rank: each for rank, each in seen.items() if not each["problem"]}
    for text, ranks in differences({rank: each["options"] for rank, each in sound.items()}):
        found.append(
            failure(
                text,
                "Give every rank the same command line. A launcher does so on its node; on several "
                "nodes, compare what each was started with",
                ranks,
            )
        )
    if found:
        return found
    pairs = next(iter(seen.values()))["pairs"]
    world_size = situation.process.world_size
    return [ok(f"the same on all ranks: {world_size} x {pairs} pairs, {_words(situation)}")]


def _words(situation: Situation) -> str:
    plan = situation.plan
    assert plan is not None
    parts = f"{plan.micro_batches} micro-batches, " if plan.micro_batches > 1 else ""
    return f"{parts}ZeRO {plan.stage}, {plan.dtype}"


def _flat(config: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            found.update(_flat(value, f"{before}{name}."))
        else:
            found[f"{before}{name}"] = value
    return found


FLAGS = Check("flags", look, judge)
