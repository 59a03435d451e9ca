"""What a checkpoint holds, told and taken out of it without a run."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from clipfast.checkpoint.fragments import SavedTensors, Unfit
from clipfast.checkpoint.manifest import Manifest
from clipfast.checkpoint.tensor_file import dump_tensors
from clipfast.files import whole_file
from clipfast.ops.adamw import follow, join_master


def described(folder: Path, manifest: Manifest) -> Iterator[str]:
    """A line for each parameter and buffer, for a person.

    Args:
        folder: of the checkpoint.
        manifest: of it.

    Raises:
        Unfit: it is of an earlier version, or its files are no whole checkpoint.
    """
    saved, shapes = _saved(folder, manifest), _shapes(manifest)
    parts: dict[str, list[str]] = {}
    kinds: dict[str, dict[str, str]] = {}
    for name, start, stop, types, path in saved.described():
        parts.setdefault(name, []).append(f"{start}:{stop} in {path.name}")
        kinds.setdefault(name, {}).update(types)
    for name, places in parts.items():
        text = ", ".join(f"{key} {kind}" for key, kind in kinds[name].items())
        yield f"{name} {list(shapes.get(name, ()))}: {text}; {'; '.join(places)}"
    for name, value in saved.buffers():
        yield f"{name} {list(value.shape)}: buffer, {str(value.dtype).removeprefix('torch.')}"


def export_weights(folder: Path, manifest: Manifest, path: Path) -> int:
    """Write the exact weights of a checkpoint in float32, and the buffers, as one safetensors file.

    Args:
        folder: of the checkpoint.
        manifest: of it.
        path: of the file.

    Returns:
        How many tensors.

    Raises:
        Unfit: it is of an earlier version, or its files are no whole checkpoint.
        OSError: a file cannot be read or written.
    """
    saved, shapes = _saved(folder, manifest), _shapes(manifest)
    tensors = dict(saved.buffers())
    for name, size in saved.parameters.items():
        parts = [_exact(stretch.tensors) for stretch in saved.read(name, 0, size)]
        # A model's own scalars have no dimension elsewhere.
        shape = () if shapes[name] == (1,) and "." not in name else shapes[name]
        tensors[name] = torch.cat(parts).view(shape)
    with whole_file(path) as temporary, open(temporary, "wb") as file:
        dump_tensors(tensors, file, _metadata(manifest))
    return len(tensors)


def _saved(folder: Path, manifest: Manifest) -> SavedTensors:
    if "engine" not in manifest.state:
        raise Unfit(
            f"{folder} was saved by an earlier version: resume it, with --max-steps at its step "
            "and --resume-with-changes, and final.safetensors holds its weights"
        )
    return SavedTensors(folder / name for name in sorted(manifest.files))


def _metadata(manifest: Manifest) -> dict[str, str]:
    """What the file says of itself; nothing of a checkpoint that does not say."""
    said = manifest.state["engine"].get("weights")
    if not isinstance(said, dict) or not all(isinstance(text, str) for text in said.values()):
        return {}
    return {"format": "pt", **said}


def _shapes(manifest: Manifest) -> dict[str, tuple[int, ...]]:
    shapes = manifest.state["engine"].get("shapes", {})
    return {name: tuple(shape) for name, shape in shapes.items()}


def _exact(tensors: dict[str, Tensor]) -> Tensor:
    weight = tensors["weight"]
    if "master" in tensors:
        return follow(weight, tensors["master"])
    if "remainder" in tensors:
        return join_master(weight, tensors["remainder"])
    return weight.float()
