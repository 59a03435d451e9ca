"""What has to be the same on every rank: the command, the code, the libraries."""

import hashlib
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import clipfast
import clipfast.kernels
from clipfast.engine.differences import flat, option_of, plain
from clipfast.env import version

if TYPE_CHECKING:
    from clipfast.engine.plan import RunPlan

# Options in a message.
_SHOWN = 6
# Ranks in a message.
_NAMED = 4


def facts(plan: "RunPlan") -> dict[str, str]:
    """Of this rank, by names for a person.

    Args:
        plan: as this rank has decided it.
    """
    return {
        **{option_of(name): str(value) for name, value in flat(plain(plan.config)).items()},
        "weights": str(plan.dtype).removeprefix("torch."),
        "ZeRO stage": str(plan.stage),
        "pairs per rank": str(plan.local_batch),
        "micro-batches": str(plan.micro_batches),
        "device": plan.process.device.type,
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "DeepSpeed": str(version("deepspeed")),
        "clipfast": clipfast.__version__,
        "sources of clipfast": source_hash(),
        f"recipe {Path(sys.argv[0]).name}": _recipe_hash(),
    }


def contradictions(mine: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """Facts of one rank that are not those of rank 0.

    Args:
        mine: of the rank.
        theirs: of rank 0.

    Returns:
        A few words for each.
    """
    names = dict.fromkeys([*mine, *theirs])
    found = [
        f"{name} {mine.get(name, 'unknown')} where rank 0 has {theirs.get(name, 'unknown')}"
        for name in names
        if mine.get(name) != theirs.get(name)
    ]
    more = [f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
    return found[:_SHOWN] + more


def disagreement(host: str, said: Sequence[str]) -> str:
    """A message about ranks that differ.

    Args:
        host: of rank 0.
        said: a line for each rank.
    """
    more = [f"and {len(said) - _NAMED} more ranks"] if len(said) > _NAMED else []
    return (
        f"ranks disagree; rank 0 is on {host}: {'. '.join([*said[:_NAMED], *more])}. Start all "
        "ranks with the same command, on the same installation and the same data"
    )


@cache
def source_hash() -> str:
    """Of every Python file of clipfast and its kernels, 12 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in _sources():
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def _sources() -> Iterator[Path]:
    for module in (clipfast, clipfast.kernels):
        yield from sorted(Path(str(module.__file__)).parent.rglob("*.py"))


def _recipe_hash() -> str:
    path = Path(sys.argv[0])
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12] if path.is_file() else "none"
