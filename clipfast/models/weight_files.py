"""State dicts in files: read without running what a file brings, written whole or not at all."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipfast.models.checks import some_of
from clipfast.models.torchscript import is_torchscript, read_torchscript


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, with the names that it has there.

    Args:
        path: a TorchScript archive, what `torch.save` wrote (bare, or under "state_dict"), or
            `.safetensors`.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        ValueError: if the file does not exist, cannot be read, or holds no state dict.
        ImportError: for `.safetensors` where that package is not installed.
    """
    if not path.is_file():
        raise ValueError(f"no weights at {path}: there is no such file")
    if path.suffix == ".safetensors":
        state = _read_with(path, _safetensors().load_file, "safetensors file")
    elif is_torchscript(path):
        state = read_torchscript(path)
    else:
        state = _read_with(path, _torch_load, "file of torch.save")
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not state:
        raise ValueError(f"{path} holds a {type(state).__name__}, not a state dict")
    odd = [str(n) for n, t in state.items() if not isinstance(t, torch.Tensor)]
    if odd:
        raise ValueError(f"{path} holds no state dict: these are no tensors: {some_of(odd)}")
    return dict(state)


def write_state(state: Mapping[str, Tensor], path: Path) -> None:
    """Write a state dict under a temporary name beside `path`, then rename it.

    Args:
        state: tensors by name, on any device.
        path: where to write; the suffix, of `check_suffix`, gives the format.

    Raises:
        OSError: if the file cannot be written.
        ImportError: for `.safetensors` where that package is not installed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _WRITERS[path.suffix](_compact(state), temporary)
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise


def check_suffix(path: Path) -> None:
    """Refuse a name whose suffix is no format that can be written.

    Args:
        path: where something will be written.

    Raises:
        ValueError: it ends in neither `.pt` nor `.safetensors`.
    """
    if path.suffix not in _WRITERS:
        raise ValueError(f"cannot export to {path.name!r}: end the name in .pt or .safetensors")


def _compact(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CPU tensors that own their memory: a slice of a flat buffer would be saved with all of it."""
    owned: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in state.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.nbytes() != tensor.nbytes or storage.data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        owned[name] = tensor
    return owned


def _write_pt(state: dict[str, Tensor], path: Path) -> None:
    with open(path, "wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def _write_safetensors(state: dict[str, Tensor], path: Path) -> None:
    _safetensors().save_file(state, path, metadata={"format": "pt"})


_WRITERS: dict[str, Callable[[dict[str, Tensor], Path], None]] = {
    ".pt": _write_pt,
    ".safetensors": _write_safetensors,
}


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError("this needs safetensors: pip install safetensors") from error
    return safetensors.torch


def _read_with(path: Path, read: Callable[[Path], Any], kind: str) -> Any:
    try:
        return read(path)
    except Exception as error:  # a damaged file can raise nearly anything
        raise ValueError(f"cannot read {path} as a {kind}: {error}") from error


def _torch_load(path: Path) -> Any:
    # Mapped, so that the optimizer state of a training checkpoint is never read from disk.
    mapped = zipfile.is_zipfile(path)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
