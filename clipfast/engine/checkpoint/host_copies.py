"""Copies in host memory of what a checkpoint is to hold: training need not wait for the disk."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

# Pinned memory is rounded up to a power of two: slabs of one waste none.
_SLAB = 256 << 20
_ALIGNED = 256


class HostCopies:
    """Memory for such copies, kept from one save to the next.

    A GPU copies from a stream of its own into pinned memory. What the training stream is given
    later waits for these copies, and the host does not.
    """

    def __init__(self) -> None:
        self._slabs: list[Tensor] = []
        self._stream: torch.cuda.Stream | None = None

    def take(self, files: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Copy tensors into the memory of those that were taken before.

        Args:
            files: of each the tensors by name, of any strides, on one GPU or on the host.

        Returns:
            Contiguous ones of the same values, once ``wait`` has returned.

        Raises:
            MemoryError: there is no room for them.
        """
        tensors = [tensor for file in files for tensor in file.values()]
        device = next((tensor.device for tensor in tensors if tensor.is_cuda), None)
        places = self._places([_bytes(tensor) for tensor in tensors], device is not None)
        copies = [
            place.view(tensor.dtype).view(tensor.shape)
            for tensor, place in zip(tensors, places, strict=True)
        ]
        left = iter(copies)
        named = [{name: next(left) for name in file} for file in files]
        if device is None:
            _copy(tensors, copies)
            return named
        self._stream = self._stream or torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream):
            _copy(tensors, copies)
        # Temporary tensors of the save may be overwritten as soon as this returns.
        torch.cuda.current_stream(device).wait_stream(self._stream)
        return named

    def wait(self) -> None:
        """Wait until a GPU has copied what was taken; another thread may call it."""
        if self._stream is not None:
            self._stream.synchronize()

    def _places(self, sizes: Sequence[int], pinned: bool) -> list[Tensor]:
        """Bytes for tensors of these sizes, several to a slab."""
        ends, where = [0], []
        for size in sizes:
            if ends[-1] and ends[-1] + size > _SLAB:
                ends.append(0)
            where.append((len(ends) - 1, ends[-1], size))
            ends[-1] += -(-size // _ALIGNED) * _ALIGNED
        if [slab.numel() for slab in self._slabs] != ends:
            # The old ones go first.
            self._slabs = []
            self._slabs = [_allocate(end, pinned) for end in ends]
        return [self._slabs[slab].narrow(0, begin, size) for slab, begin, size in where]


def _copy(tensors: Sequence[Tensor], copies: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for tensor, copy in zip(tensors, copies, strict=True):
            copy.copy_(tensor, non_blocking=True)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _allocate(size: int, pinned: bool) -> Tensor:
    try:
        return torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
    except RuntimeError as error:
        raise MemoryError(
            f"The host has no {size / 1e9:.2f} GB for a copy of what is saved "
            "(--checkpoint.background)"
        ) from error
