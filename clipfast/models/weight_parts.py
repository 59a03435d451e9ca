"""Weights in several files with an index, and in a folder, as DeepSpeed's `zero_to_fp32.py` writes
them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path, PurePath

from torch import Tensor

from clipfast.models.checks import some_of

INDEX = ".index.json"
_IN_FOLDER = ("model.safetensors", "pytorch_model.bin")
_LARGEST_INDEX = 64 << 20


def find_in_folder(folder: Path) -> Path:
    """The weights in a folder that `zero_to_fp32.py` wrote.

    Raises:
        ValueError: it holds none of the names that this program gives.
    """
    names = [name for stem in _IN_FOLDER for name in (stem + INDEX, stem)]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise ValueError(
        f"no weights at {folder}: that is a folder without {', '.join(names)}; name a file"
    )


def read_parts(path: Path, read: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The state dict whose tensors an index distributes over files beside it.

    Args:
        path: the index.
        read: reads one of the files.

    Raises:
        ValueError: the index is malformed or leads out of its folder, or a file cannot be read or
            lacks a tensor.
    """
    places = _places(path)
    state: dict[str, Tensor] = {}
    for part in sorted(set(places.values())):
        tensors = read(path.with_name(part))
        wanted = [name for name, place in places.items() if place == part]
        missing = [name for name in wanted if name not in tensors]
        if missing:
            raise ValueError(
                f"{path.with_name(part)} lacks what {path.name} says: {some_of(missing)}"
            )
        state.update({name: tensors[name] for name in wanted})
    return state


def _places(path: Path) -> dict[str, str]:
    """Name of a tensor -> name of the file that holds it."""
    try:
        if path.stat().st_size > _LARGEST_INDEX:
            raise ValueError(f"it is larger than {_LARGEST_INDEX:,} bytes")
        places = json.loads(path.read_bytes()).get("weight_map")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"cannot read {path} as an index of weights: {str(error)[:200]}"
        ) from error
    if not isinstance(places, dict) or not places:
        raise ValueError(f"cannot read {path} as an index of weights: it has no weight_map")
    for part in places.values():
        if not isinstance(part, str) or not _is_plain_name(part):
            raise ValueError(
                f"refused to follow {path}: {str(part)[:99]!r} is no name of a file beside it"
            )
    return places


def _is_plain_name(part: str) -> bool:
    return (
        PurePath(part).name == part
        and part not in ("", "..")
        and "\\" not in part
        and "\0" not in part
        and not part.endswith(INDEX)
    )
