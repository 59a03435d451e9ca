"""Weights in several files with an index, and in a folder, as Hugging Face and DeepSpeed's
`zero_to_fp32.py` write them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path, PurePath

from torch import Tensor

from clipfast.models.checks import some_of

INDEX = ".index.json"
_IN_FOLDER = (
    "model.safetensors",
    "pytorch_model.bin",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "final.safetensors",
)
# Names in a folder, and what it is with one of them.
_FOLDERS = (
    (
        r"^zero_to_fp32\.py$|^(zero_pp_rank|mp_rank|bf16_zero).*_states\.pt$|^global_step\d+$",
        "it is a DeepSpeed checkpoint. Make one file of it with its own program, "
        "`python zero_to_fp32.py FOLDER OUTPUT`, and name OUTPUT",
    ),
    (
        r"^\.metadata$|\.distcp$",
        "it is a checkpoint of torch.distributed (DCP, FSDP). Make one file of it: `python -m "
        "torch.distributed.checkpoint.format_utils dcp_to_torch {folder} weights.pt`",
    ),
    (
        r"-\d+-of-\d+\.(safetensors|bin)$",
        "it holds parts of a model without their index: download the .index.json too",
    ),
    (
        r"^(tf_model\.h5|saved_model\.pb|flax_model\.msgpack)$",
        "it holds the model of another framework: take its model.safetensors",
    ),
)
_LARGEST_INDEX = 2 << 20


def file_at(path: Path) -> Path:
    """The file to read: the path itself, the one in its folder, or the index of its parts.

    Raises:
        ValueError: there is none that can be read.
    """
    try:
        if path.is_dir():
            path = find_in_folder(path)
        if not path.is_file():
            what = "that is no regular file" if path.exists() else "there is no such file"
            raise ValueError(f"no weights at {path}: {what}")
        if not path.stat().st_size:
            raise ValueError(f"no weights at {path}: the file is empty")
        with open(path, "rb"):
            return path
    except OSError as error:
        raise ValueError(f"no weights at {path}: {error.strerror or error}") from error


def find_in_folder(folder: Path) -> Path:
    """The weights in a folder of Hugging Face, OpenCLIP or `zero_to_fp32.py`.

    Raises:
        ValueError: it holds none of the names that these give, with what it is instead.
    """
    names = [name for stem in _IN_FOLDER for name in (stem + INDEX, stem)]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    inside = sorted(entry.name for entry in folder.iterdir())
    for pattern, what in _FOLDERS:
        if any(re.search(pattern, name) for name in inside):
            raise ValueError(f"no weights at {folder}: {what.format(folder=folder)}")
    raise ValueError(
        f"no weights at {folder}: that is a folder without {', '.join(_IN_FOLDER)}; name a file"
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
