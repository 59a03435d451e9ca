"""A safetensors file, written tensor by tensor to any file.

The library's own writer makes a second copy of every tensor first, and writes to paths alone.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

_TYPES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
# Of a tensor, at a time; one on a GPU passes through the host's memory.
_CHUNK = 64 << 20


class Writable(Protocol):
    """What is written to."""

    def write(self, data: bytes | memoryview, /) -> object:
        """Write all of it."""


def dump_tensors(
    tensors: Mapping[str, Tensor], file: Writable, metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors as a safetensors file.

    Args:
        tensors: by name, on any device; each is read once, in parts, when its turn comes.
        file: as ``torch.save`` takes it.
        metadata: texts that stand in the file's header.

    Raises:
        OSError: of ``file``.
    """
    # Elements lie at multiples of their size: readers map the file.
    order = sorted(tensors, key=lambda name: -tensors[name].element_size())
    file.write(_header({name: tensors[name] for name in order}, metadata or {}))
    for name in order:
        for part in _bytes_of(tensors[name]):
            file.write(part)


def _header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": _TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes_of(tensor: Tensor) -> Iterator[memoryview]:
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    for part in flat.split(_CHUNK) if flat.numel() else ():
        yield memoryview(part.cpu().numpy())
