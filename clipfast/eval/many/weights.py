"""A folder of results for each of several weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath


def folder_names(weights: Sequence[str]) -> dict[str, str]:
    """Short names, by which weights can be told apart.

    Args:
        weights: as ``--weights`` takes them.

    Returns:
        By weights: of a run's ``final.safetensors`` the run's name, else that of the file or folder
        without its ending. Of equal names the later ones have a number.

    Raises:
        ValueError: the same weights are named twice.
    """
    if len(set(weights)) < len(weights):
        twice = next(one for one in weights if list(weights).count(one) > 1)
        raise ValueError(f"--weights {twice} is named twice")
    names: dict[str, str] = {}
    for one in weights:
        path = PurePath(one)
        name = path.parent.name if path.stem == "final" and path.parent.name else path.stem
        name = re.sub(r"[^A-Za-z0-9.-]+", "-", name) or "weights"
        taken, number = name, 2
        while taken in names.values():
            taken, number = f"{name}-{number}", number + 1
        names[one] = taken
    return names
