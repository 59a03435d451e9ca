"""What the loaders are given, checked at construction rather than at the first batch."""

from collections.abc import Mapping
from typing import Any

import torch

from clipfast.arguments import WrongKindError, real_number, shown, whole_number
from clipfast.data.workers import machine_memory

IMAGE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Sides beyond this are mistakes: a batch of eight such images has 3 GB.
MOST_PIXELS_PER_SIDE = 8192
MOST_THREADS = 4096


def check_place(rank: Any, world_size: Any) -> tuple[int, int]:
    """Rank and number of ranks, as whole numbers.

    Raises:
        ValueError: there is no such rank.
    """
    world_size = whole_number("world_size", world_size, 1)
    rank = whole_number("rank", rank, 0, world_size - 1, f"of world_size={world_size} ranks")
    return rank, world_size


def check_position(saved: Mapping[str, Any], ours: Mapping[str, Any], may_lack: str = "") -> None:
    """A saved position in the data still has a meaning.

    Args:
        saved: what it was saved with.
        ours: what the order of the data depends on, by name.
        may_lack: a name that older positions do not have.

    Raises:
        ValueError: something is another; the message says what.
    """
    changed = [
        f"{name} was {saved.get(name)}, is {value}"
        for name, value in ours.items()
        if saved.get(name) != value and (name in saved or name != may_lack)
    ]
    if changed:
        raise ValueError(
            "the saved position in the data does not fit this run: "
            + "; ".join(changed)
            + ". Resume with the same settings, or start a new run from its weights"
        )


def check_device(device: Any) -> torch.device:
    """The device that images are wanted on.

    Raises:
        ValueError: it is neither a CPU nor a GPU that is here.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        kind = ValueError if isinstance(device, str | int) else WrongKindError
        raise kind(f"device must be 'cpu', 'cuda' or 'cuda:N'; got {shown(device)}") from None
    if found.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'cpu', 'cuda' or 'cuda:N'; got '{found}'")
    gpus = torch.cuda.device_count() if found.type == "cuda" else 1
    if not gpus:
        raise ValueError(f"device='{found}': torch sees no GPU here; pass device='cpu'")
    if found.type == "cuda" and (found.index or 0) >= gpus:
        raise ValueError(f"device='{found}': torch sees {gpus} GPU(s) here, counted from 0")
    return found


def check_micro_batch(micro_batch: Any, local_batch: int) -> int:
    """Pairs that are decoded at a time.

    Args:
        micro_batch: M; None: all.
        local_batch: a rank's share of the batch.

    Raises:
        ValueError: it does not divide the share.
    """
    if micro_batch is None:
        return local_batch
    micro_batch = whole_number("micro_batch", micro_batch, 1)
    if local_batch % micro_batch:
        raise ValueError(
            f"micro_batch={micro_batch} does not divide a rank's share of the batch, {local_batch}"
        )
    return micro_batch


def check_batch(images: int, image_size: int, dtype: torch.dtype, device: torch.device) -> None:
    """Refuse a batch that no memory holds, before anything is allocated for it.

    A batch that passes may still be too large: a decoder holds a few, and a model more.

    Args:
        images: that this rank decodes at a time.
        image_size: S, pixels.
        dtype: of the images.
        device: where they are wanted.

    Raises:
        ValueError: its images alone have more bytes than the device has memory, used or free.
    """
    size = images * 3 * image_size**2 * dtype.itemsize
    if device.type == "cuda":
        memory, place = torch.cuda.get_device_properties(device).total_memory, str(device)
    else:
        memory = machine_memory()
        place = "this machine"
    if size > memory:
        raise ValueError(
            f"a batch of {images:,} images of {image_size} x {image_size} pixels on one rank has "
            f"{size / 1e9:,.1f} GB, more than the memory of {place}, {memory / 1e9:,.1f} GB: pass "
            "a smaller batch_size, or to a TrainLoader a smaller micro_batch"
        )


def check_dtype(dtype: Any) -> torch.dtype:
    """The type of the images.

    Raises:
        ValueError: normalised pixels do not fit into it.
    """
    if not isinstance(dtype, torch.dtype):
        raise WrongKindError(f"dtype must be a torch.dtype; got {shown(dtype)}")
    if dtype not in IMAGE_DTYPES:
        known = ", ".join(map(str, IMAGE_DTYPES))
        raise ValueError(f"dtype must be one of {known}, since pixels are normalised; got {dtype}")
    return dtype


def check_scale(scale: Any) -> tuple[float, float]:
    """Smallest and largest side of a crop.

    Raises:
        ValueError: it is no pair with 0 < smallest <= largest <= 1.
    """
    try:
        low, high = scale
    except (TypeError, ValueError):
        raise WrongKindError(
            f"scale must be two numbers, smallest and largest side; got {shown(scale)}"
        ) from None
    low, high = real_number("scale[0]", low), real_number("scale[1]", high)
    if not 0.0 < low <= high <= 1.0:
        raise ValueError(f"scale must satisfy 0 < smallest <= largest <= 1; got ({low}, {high})")
    return low, high
