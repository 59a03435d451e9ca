"""What a file of the campaign on weights is."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

State = dict[str, Tensor]


@dataclass(frozen=True)
class File:
    """One file.

    Attributes:
        kind: for the table.
        name: of this one.
        make: writes it into a folder, from the state dict of a model; returns its path.
        words: one of them stands in the refusal; empty where the file must load.
    """

    kind: str
    name: str
    make: Callable[[Path, State], Path]
    words: tuple[str, ...] = ()


def saved(
    kind: str,
    name: str,
    content: Callable[[State], Any],
    *words: str,
    suffix: str = ".pt",
    zipped: bool = True,
) -> File:
    """A file of `torch.save`."""

    def make(folder: Path, state: State) -> Path:
        path = folder / f"model{suffix}"
        torch.save(content(state), path, _use_new_zipfile_serialization=zipped)
        return path

    return File(kind, name, make, words)


def written(kind: str, name: str, data: bytes, *words: str, suffix: str = ".pt") -> File:
    """A file of some bytes."""

    def make(folder: Path, state: State) -> Path:
        path = folder / f"model{suffix}"
        path.write_bytes(data)
        return path

    return File(kind, name, make, words)


def prefixed(state: State, prefix: str) -> State:
    """The same tensors under longer names."""
    return {prefix + name: tensor for name, tensor in state.items()}
