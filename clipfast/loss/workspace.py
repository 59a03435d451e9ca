"""How much memory the loss may take: for logits that it keeps, and for those it works on.

Legend: B local batch, G global batch, D width.

A CPU works on what its caches hold, so 256 MiB are plenty. On a GPU a wave of rows must be large
enough for the library's products to fill the card, and each wave reads and writes the gradient of
all texts once, 8GD bytes. By count, for G 524,288 and D 1,024 on one H100 (790 TFLOP/s in bf16, 3.0
TB/s), where 8G^2 D FLOP take 2.85 s:

    256 MiB    1,024 rows per wave, 512 waves    2.2 TB, 0.73 s more
    4 GiB      4,096 rows per wave, 128 waves    0.55 TB, 0.18 s more

4,096 rows and a D of 1,024 are 128 tiles of 128 x 256, one for each multiprocessor. With G 32,768
on one card all logits, 2 GiB in half precision, are kept: 6G^2 D FLOP instead of 8.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from clipfast.devices import is_capturing
from clipfast.ops.tracing import constant_in_graphs

VARIABLE = "CLIPFAST_LOSS_WORKSPACE"
HOST_BYTES = 256 * 2**20
# Of a GPU's memory, and of what is free when its first loss is computed. Twice as much is taken
# where logits are kept.
_SHARE, _SHARE_OF_FREE = 16, 4
_LEAST = 32 * 2**20

_found: dict[torch.device, int] = {}
_planned: ContextVar[int | None] = ContextVar("planned_memory", default=None)


@contextmanager
def planned_memory(total: int | None) -> Iterator[None]:
    """Inside, `needed_bytes` takes GPUs to have this much memory, and asks none.

    Args:
        total: in bytes; None changes nothing.
    """
    token = _planned.set(total)
    try:
        yield
    finally:
        _planned.reset(token)


@constant_in_graphs
def budget(device: torch.device) -> int:
    """Bytes for what is kept, and as many for what is worked on.

    What a GPU has free is asked once per process and kept. It differs between ranks, and so may
    the budget: no collective depends on it. The result is a power of two, so that a run finds the
    same one again, and with it the same waves and the same bits, unless memory is much scarcer.

    Args:
        device: where the features are.

    Returns:
        What CLIPFAST_LOSS_WORKSPACE says; else `HOST_BYTES`, or on a GPU a share of its memory.

    Raises:
        ValueError: CLIPFAST_LOSS_WORKSPACE is no positive number of bytes.
    """
    fixed = _fixed(device)
    if fixed is not None:
        return fixed
    if device not in _found:
        total = torch.cuda.get_device_properties(device).total_memory
        if is_capturing(device):
            # A graph under capture may not ask, and what it is told must not last.
            return share_of(total, total)
        free = torch.cuda.mem_get_info(device)[0]
        # What torch's allocator holds and has given to nobody is free as well.
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        _found[device] = share_of(total, free)
    return _found[device]


def share_of(total: int, free: int) -> int:
    """The budget of a GPU.

    Args:
        total: its memory in bytes.
        free: what of it is free.

    Returns:
        The largest power of two of at most total / 16 and free / 4; 32 MiB at the least.
    """
    most = max(_LEAST, min(total // _SHARE, free // _SHARE_OF_FREE))
    return 1 << (most.bit_length() - 1)


def needed_bytes(
    local_batch: int, global_batch: int, width: int, dtype: torch.dtype, device: torch.device
) -> int:
    """Bytes that a rank's loss holds at its peak, features and their own gradients aside.

    Args:
        local_batch: B.
        global_batch: G.
        width: D.
        dtype: of the features.
        device: where they are.

    Returns:
        Logits that are kept where they fit, those that are worked on, the texts of all ranks, and
        the gradients of B images and G texts in float32.
    """
    in_half = device.type == "cuda" and dtype.itemsize == 2
    logits = local_batch * global_batch * (2 if in_half else max(4, dtype.itemsize))
    planned = _planned.get() if device.type == "cuda" else None
    most = _fixed(device, is_here=planned is None)
    if most is None:
        total = planned or torch.cuda.get_device_properties(device).total_memory
        most = share_of(total, total)
    kept = logits if logits <= most else 0
    texts = global_batch * width * dtype.itemsize
    gradients = (local_batch + global_batch) * width * 4
    return kept + min(logits, most) + texts + gradients


def _fixed(device: torch.device, is_here: bool = True) -> int | None:
    """The budget where memory has no say in it."""
    given = os.environ.get(VARIABLE)
    if not given:
        is_gpu = device.type == "cuda" and (torch.cuda.is_available() or not is_here)
        return None if is_gpu else HOST_BYTES
    if not (given.isascii() and given.isdigit() and int(given) > 0):
        raise ValueError(
            f"{VARIABLE}={given}: expected a positive number of bytes, such as {2**30}"
        )
    return int(given)
