"""State dicts in files: read without running what a file brings, written whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clipfast.files import whole_file
from clipfast.models.checks import some_of
from clipfast.models.file_kinds import (
    check_header,
    is_legacy,
    is_safetensors,
    kind_of,
    kind_of_zip,
    unknown_kind,
)
from clipfast.models.inert import Odd, View
from clipfast.models.metadata import KEY, LIMIT, WeightsMetadata, parse
from clipfast.models.naming import origin_of, published_names, without_wrappers
from clipfast.models.saved import Storages, read_legacy, read_zip
from clipfast.models.torchscript import is_torchscript, read_torchscript
from clipfast.models.weight_parts import INDEX, file_at, read_parts
from clipfast.models.wrappers import find_state
from clipfast.models.zips import entry_names, small_entry
from clipfast.sink import Sink

_SAFETENSORS = ".safetensors"
_SAVED = "file of torch.save"
_ENTRY = f"{KEY}.json"


class Contents(NamedTuple):
    """What a file of weights holds.

    Attributes:
        state: tensors by their published names, on the CPU.
        activation: that the file's own modules tell; None where they do not.
        origin: of names that were translated, for messages; empty where none were.
    """

    state: dict[str, Tensor]
    activation: str | None = None
    origin: str = ""


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a file; see `read_contents`."""
    return read_contents(path).state


def read_contents(path: Path) -> Contents:
    """The weights in a file, without the names of what was around the model.

    Args:
        path: a TorchScript archive, what `torch.save` wrote (bare, or under the keys of a training
            program), `.safetensors`, or what `zero_to_fp32.py` or Hugging Face wrote: a folder, or
            an index of parts.

    Returns:
        Tensors by published names, on the CPU.

    Raises:
        ValueError: if the file does not exist, cannot be read, or holds no state dict.
        ImportError: for safetensors where that package is not installed.
    """
    path = file_at(path)
    if path.name.endswith(INDEX):
        read = _Read(read_parts(path, _read_part))
    else:
        read = _read_one(path)
    state = find_state(read.content, path)
    _check_names(state, path)
    bare = without_wrappers(state, path)
    tensors = _tensors(bare, read.storages, path)
    return Contents(published_names(tensors), read.activation, origin_of(tensors))


def read_metadata(path: Path) -> WeightsMetadata | None:
    """What a file of weights says of itself.

    Args:
        path: as `read_state` takes it.

    Returns:
        The metadata; None where the file has none, as those of other programs.

    Raises:
        ValueError: the file does not exist or cannot be read, or its metadata is malformed.
        ImportError: for `.safetensors` where that package is not installed.
    """
    path = file_at(path)
    block: str | bytes | None = None
    if path.name.endswith(INDEX):
        return None
    names = _entries(path)
    if names is not None:
        block = small_entry(path, f"/{_ENTRY}", LIMIT)
    elif is_safetensors(path):
        block = _read_with(path, _safetensors_block, "safetensors file")
    return None if block is None else parse(block, path)


def write_state(
    state: Mapping[str, Tensor], path: Path, metadata: WeightsMetadata | None = None
) -> None:
    """Write a state dict whole, with its bytes on the disk; see `clipfast.files.whole_file`.

    Args:
        state: tensors by name, on any device.
        path: where to write; the suffix, of `check_suffix`, gives the format.
        metadata: what the file says of itself.

    Raises:
        OSError: if the file cannot be written, with path and free space.
        ImportError: for `.safetensors` where that package is not installed.
    """
    block = None if metadata is None else metadata.to_json()
    with whole_file(path) as temporary:
        _WRITERS[path.suffix](_compact(state), temporary, block)


def check_suffix(path: Path) -> None:
    """Refuse a name whose suffix is no format that can be written.

    Args:
        path: where something will be written.

    Raises:
        ValueError: it ends in neither `.pt` nor `.safetensors`.
    """
    if path.suffix not in _WRITERS:
        raise ValueError(f"cannot export to {path.name!r}: end the name in .pt or .safetensors")


class _Read(NamedTuple):
    """The object in a file, the memory of its tensors, and the activation that it tells."""

    content: Any
    storages: Storages | None = None
    activation: str | None = None


def _read_one(path: Path) -> _Read:
    names = _entries(path)
    if names is not None and is_torchscript(names):
        script = read_torchscript(path)
        return _Read(script.tensors, activation=script.activation)
    if names is not None:
        if not any(name.endswith("/data.pkl") for name in names):
            raise ValueError(f"no weights at {path}: {kind_of_zip(names)}")
        content, storages = _read_with(path, read_zip, _SAVED)
        return _Read(content, storages)
    if is_legacy(path):
        content, storages = _read_with(path, read_legacy, _SAVED)
        return _Read(content, storages)
    if is_safetensors(path):
        return _Read(_read_with(path, _load_safetensors, "safetensors file"))
    raise ValueError(f"cannot read {path} as a {_SAVED}: {unknown_kind(path)}")


def _entries(path: Path) -> list[str] | None:
    """The names in a zip; None for another file that may hold weights."""
    names = entry_names(path)
    if names is None and (kind := kind_of(path)) is not None:
        raise ValueError(f"no weights at {path}: {kind}")
    return names


def _read_part(path: Path) -> dict[str, Tensor]:
    """The tensors of one part, with the names that they have there."""
    read = _read_one(file_at(path))
    state = find_state(read.content, path)
    _check_names(state, path)
    return _tensors(state, read.storages, path)


def _check_names(state: Mapping[Any, Any], path: Path) -> None:
    """Refuse what is no mapping from names to tensors.

    Raises:
        ValueError: with what is there instead.
    """
    if not state:
        raise ValueError(f"{path} holds an empty dict, not a state dict")
    # A name can be any object of a pickle, whose text may be endless.
    unnamed = {type(name).__name__ for name in state if not isinstance(name, str)}
    if unnamed:
        raise ValueError(f"{path} holds no state dict: a {min(unnamed)} is no name of a tensor")
    hidden = [name for name in state if not name.isprintable()]
    if hidden:
        raise ValueError(f"{path} holds no state dict: {hidden[0][:99]!r} is no name of a tensor")
    odd = [name[:99] for name, leaf in state.items() if not isinstance(leaf, View | Odd | Tensor)]
    if odd:
        raise ValueError(f"{path} holds no state dict: these are no tensors: {some_of(odd)}")


def _tensors(state: Mapping[str, Any], storages: Storages | None, path: Path) -> dict[str, Tensor]:
    """Tensors by name, each with memory of its own size.

    Raises:
        ValueError: with the names of some that are none that a model has, and why.
    """
    if storages is not None:
        views = [leaf for leaf in state.values() if isinstance(leaf, View)]
        _read_with(path, lambda _: storages.check(views), _SAVED)
    tensors: dict[str, Tensor] = {}
    strange: list[str] = []
    for name, leaf in state.items():
        if isinstance(leaf, Odd):
            strange.append(f"{name[:99]} ({leaf.kind})")
            continue
        try:
            tensors[name] = storages.tensor(leaf) if storages is not None else leaf
        except Exception as error:  # what a pickle says of a tensor can raise nearly anything
            strange.append(f"{name[:99]} ({str(error)[:200]})")
    strange += [f"{n[:99]} ({t.dtype})" for n, t in tensors.items() if t.is_complex()]
    if strange:
        raise ValueError(f"refused to read {path}: no model has such tensors: {some_of(strange)}")
    return tensors


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


def _write_pt(state: dict[str, Tensor], path: Path, block: str | None) -> None:
    with Sink(path) as sink:
        file: Any = sink
        torch.save(state, file)
    if block is not None:
        with zipfile.ZipFile(path, "a") as archive:
            root = archive.namelist()[0].partition("/")[0]
            archive.writestr(zipfile.ZipInfo(f"{root}/{_ENTRY}"), block)


def _write_safetensors(state: dict[str, Tensor], path: Path, block: str | None) -> None:
    package = _safetensors()
    metadata = {"format": "pt", **({} if block is None else {KEY: block})}
    try:
        package.torch.save_file(state, path, metadata=metadata)
    except package.SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise OSError(errno.EIO, str(error)) from error
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


_WRITERS: dict[str, Callable[[dict[str, Tensor], Path, str | None], None]] = {
    ".pt": _write_pt,
    _SAFETENSORS: _write_safetensors,
}


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError("this needs safetensors: pip install safetensors") from error
    return safetensors


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    check_header(path)
    return _safetensors().torch.load_file(path)


def _safetensors_block(path: Path) -> str | None:
    check_header(path)
    with _safetensors().safe_open(path, "pt") as file:
        return (file.metadata() or {}).get(KEY)


def _read_with(path: Path, read: Callable[[Path], Any], kind: str) -> Any:
    try:
        return read(path)
    except Exception as error:  # a damaged file can raise nearly anything
        text = str(error)[:500] or type(error).__name__
        raise ValueError(f"cannot read {path} as a {kind}: {text}") from error
