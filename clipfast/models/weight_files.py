"""State dicts in files: read without running what a file brings, written whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipfast.files import whole_file
from clipfast.models.checks import some_of
from clipfast.models.metadata import KEY, LIMIT, WeightsMetadata, parse
from clipfast.models.torchscript import is_torchscript, read_torchscript
from clipfast.models.trained_with import Said, beside
from clipfast.models.weight_parts import INDEX, find_in_folder, read_parts
from clipfast.models.zips import entry_names, small_entry

_SAFETENSORS = ".safetensors"
_ENTRY = f"{KEY}.json"


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, with the names that it has there.

    Args:
        path: a TorchScript archive, what `torch.save` wrote (bare, or under "state_dict"),
            `.safetensors`, or what `zero_to_fp32.py` wrote: its folder, or its index of parts.

    Returns:
        Tensors by name, on the CPU.

    Raises:
        ValueError: if the file does not exist, cannot be read, or holds no state dict.
        ImportError: for `.safetensors` where that package is not installed.
    """
    path = _file_at(path)
    if path.name.endswith(INDEX):
        return read_parts(path, read_state)
    if path.suffix == _SAFETENSORS:
        state = _read_with(path, _safetensors().torch.load_file, "safetensors file")
    elif is_torchscript(path):
        state = read_torchscript(path)
    else:
        state = _read_with(path, _torch_load, "file of torch.save")
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not state:
        raise ValueError(f"{path} holds a {type(state).__name__}, not a state dict")
    _check_tensors(state, path)
    return dict(state)


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
    path = _file_at(path)
    block: str | bytes | None = None
    if path.suffix == _SAFETENSORS:
        block = _read_with(path, _safetensors_block, "safetensors file")
    elif not path.name.endswith(INDEX) and entry_names(path) is not None:
        block = small_entry(path, f"/{_ENTRY}", LIMIT)
    return None if block is None else parse(block, path)


def read_activation(path: Path) -> Said | None:
    """Which activation a file without metadata was trained with.

    Args:
        path: as `read_state` takes it.

    Returns:
        What tells it; None where nothing does.
    """
    return beside(path)


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


def _file_at(path: Path) -> Path:
    """The file to read: the path itself, or the one in its folder.

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


def _check_tensors(state: Mapping[Any, Any], path: Path) -> None:
    """Refuse what is no plain tensor with memory of its own size.

    Raises:
        ValueError: with the names of some that are none.
    """
    # A name can be any object of a pickle, whose text may be endless.
    unnamed = {type(name).__name__ for name in state if not isinstance(name, str)}
    if unnamed:
        raise ValueError(f"{path} holds no state dict: a {min(unnamed)} is no name of a tensor")
    odd = [name[:99] for name, tensor in state.items() if not isinstance(tensor, Tensor)]
    if odd:
        raise ValueError(f"{path} holds no state dict: these are no tensors: {some_of(odd)}")
    strange = [name[:99] for name, tensor in state.items() if not _is_plain(tensor)]
    if strange:
        raise ValueError(
            f"refused to read {path}: these tensors are sparse, quantised, complex, without memory "
            f"or larger than theirs: {some_of(strange)}"
        )


def _is_plain(tensor: Tensor) -> bool:
    return (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_quantized
        and not tensor.is_complex()
        # A few bytes can be repeated to any size by a stride of 0.
        and tensor.nbytes <= tensor.untyped_storage().nbytes()
    )


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


class _Sink:
    """A file for `torch.save`, which reports a failed write as an error of its own."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb")  # noqa: SIM115
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.failure = self.failure or error
            raise

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _write_pt(state: dict[str, Tensor], path: Path, block: str | None) -> None:
    sink: Any = _Sink(path)
    try:
        torch.save(state, sink)
    except RuntimeError as error:
        raise (sink.failure or error) from error
    finally:
        sink.close()
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


def _safetensors_block(path: Path) -> str | None:
    with _safetensors().safe_open(path, "pt") as file:
        return (file.metadata() or {}).get(KEY)


def _read_with(path: Path, read: Callable[[Path], Any], kind: str) -> Any:
    try:
        return read(path)
    except Exception as error:  # a damaged file can raise nearly anything
        text = _without_advice(str(error))
        raise ValueError(f"cannot read {path} as a {kind}: {text[:500]}") from error


def _without_advice(text: str) -> str:
    """torch's reason alone: its advice is to load without the check."""
    if asked := re.search(r"GLOBAL ([\w.]+)", text):
        return f"it asks for {asked[1]}, which no weights need"
    text = re.sub(r"(?s)Weights only load failed.*?trusted source\.\s*", "", text)
    return re.sub(r"(?s)\s*(Please file an issue|Check the documentation).*", "", text)


def _torch_load(path: Path) -> Any:
    # Mapped, so that the optimizer state of a training checkpoint is never read from disk.
    mapped = entry_names(path) is not None
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
