"""Copies in host memory of what a checkpoint is to hold, so that training need not wait for a disk.

The copy of a tensor shares its memory with the copies of those that it shares it with, and with no
other: a file that is written from copies has the bytes of one that is written from the originals.
"""

import io
import pickle
from typing import Any

import torch
from torch import Tensor


class HostCopies:
    """Memory for such copies, kept from one save to the next.

    A GPU copies from a stream of its own into pinned memory. What the training stream is given
    later waits for these copies, and the host does not.
    """

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []
        self._used = 0
        self._stream: torch.cuda.Stream | None = None

    def begin(self) -> None:
        """Let the memory be used again: what was taken before is no longer needed."""
        self._used = 0

    def take(self, content: Any) -> Any:
        """The same content, with copies of its tensors.

        Args:
            content: what ``torch.save`` would take.

        Returns:
            As good as the original once ``wait`` has returned.

        Raises:
            MemoryError: there is no room for it.
        """
        text = io.BytesIO()
        outgoing = _WithoutTensors(text)
        outgoing.dump(content)
        copies = self._copies(outgoing.tensors)
        text.seek(0)
        return _WithTensors(text, copies).load()

    def wait(self) -> None:
        """Wait until a GPU has copied what was taken; another thread may call it."""
        if self._stream is not None:
            self._stream.synchronize()

    def _copies(self, tensors: list[Tensor]) -> list[Tensor]:
        # A rank trains on one GPU.
        device = next((tensor.device for tensor in tensors if tensor.is_cuda), None)
        if device is not None:
            self._stream = self._stream or torch.cuda.Stream(device)
            self._stream.wait_stream(torch.cuda.current_stream(device))
        copied: dict[int, Tensor] = {}
        copies = []
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata not in copied:
                copied[storage._cdata] = self._copy(storage)
            copies.append(_like(tensor, copied[storage._cdata]))
        if device is not None and self._stream is not None:
            # Temporary tensors of the save may be overwritten as soon as this returns.
            torch.cuda.current_stream(device).wait_stream(self._stream)
        return copies

    def _copy(self, storage: torch.UntypedStorage) -> Tensor:
        buffer = self._buffer(storage.nbytes(), pinned=self._stream is not None)
        source = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
        if storage.device.type == "cuda":
            with torch.cuda.stream(self._stream):
                buffer.copy_(source, non_blocking=True)
        else:
            buffer.copy_(source)
        return buffer

    def _buffer(self, size: int, pinned: bool) -> Tensor:
        """Bytes that this save has not used yet; runs save the same sizes in the same order."""
        place = self._used
        if place == len(self._buffers):
            self._buffers.append(torch.empty(0, dtype=torch.uint8))
        if self._buffers[place].numel() != size:
            # The old one goes first.
            self._buffers[place] = torch.empty(0, dtype=torch.uint8)
            self._buffers[place] = _allocate(size, pinned)
        self._used += 1
        return self._buffers[place]


def _allocate(size: int, pinned: bool) -> Tensor:
    try:
        return torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
    except RuntimeError as error:
        raise MemoryError(
            f"The host has no {size / 1e9:.2f} GB for a copy of what is saved "
            "(--checkpoint.background)"
        ) from error


def _like(tensor: Tensor, buffer: Tensor) -> Tensor:
    """A tensor that is saved with the bytes of another one, of other memory."""
    place = tensor.storage_offset(), tensor.size(), tensor.stride()
    copy = torch.empty(0, dtype=tensor.dtype).set_(buffer.untyped_storage(), *place)
    if isinstance(tensor, torch.nn.Parameter):
        copy = torch.nn.Parameter(copy, tensor.requires_grad)
    # DeepSpeed gives tensors names, which are saved too.
    vars(copy).update(vars(tensor))
    return copy.requires_grad_(tensor.requires_grad)


class _WithoutTensors(pickle.Pickler):
    """Numbers in the place of tensors, which it collects."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.tensors: list[Tensor] = []
        self._numbers: dict[int, int] = {}

    def persistent_id(self, obj: Any) -> int | None:
        if not isinstance(obj, Tensor):
            return None
        number = self._numbers.setdefault(id(obj), len(self.tensors))
        if number == len(self.tensors):
            self.tensors.append(obj)
        return number


class _WithTensors(pickle.Unpickler):
    """Other tensors in the place of numbers."""

    def __init__(self, file: io.BytesIO, tensors: list[Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, pid: int) -> Tensor:
        return self._tensors[pid]
