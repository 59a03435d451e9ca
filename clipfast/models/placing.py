"""Whether tensors can be put into a model: looked at before any of it changes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path

import torch
from torch import Tensor

from clipfast.models.checks import some_of

State = Mapping[str, Tensor]


def check_values(given: State, target: State, path: Path) -> None:
    """Refuse values that are no weights: NaN, infinity, and what is infinite once it is cast.

    Args:
        given: of the file, under the names of the model.
        target: the model's own.
        path: the file, for messages.

    Raises:
        ValueError: with the names of some, and how many there are.
    """
    if text := odd_values(given, target):
        raise ValueError(
            f"refused to load {path}: {text}. A run that diverged leaves such weights: take an "
            "earlier checkpoint. load_weights(..., allow_nonfinite=True) loads them all the same"
        )


def odd_values(given: State, target: State | None = None) -> str:
    """What is not finite in a state; empty where all is.

    Each tensor is read once, for its smallest and largest value.

    Args:
        given: tensors by name.
        target: those that they will be cast to; None: they stay what they are.

    Returns:
        How many there are of each kind, with the names of some.
    """
    nan, infinite, overflowing = [], [], []
    for name, tensor in given.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        ends = torch.stack(torch.aminmax(tensor))
        if ends.isnan().any():
            nan.append(name)
        elif not ends.isfinite().all():
            infinite.append(name)
        elif target is not None and not ends.to(target[name].dtype).isfinite().all():
            overflowing.append(f"{name} ({tensor.dtype} in {target[name].dtype})")
    found = {
        "hold NaN": nan,
        "hold an infinity": infinite,
        "have values too large for the model's type": overflowing,
    }
    return "; ".join(f"{len(n)} tensors {what}: {some_of(n)}" for what, n in found.items() if n)


def check_places(target: State, given: State, name: str) -> None:
    """Refuse a model whose tensors cannot take those of a file.

    Args:
        target: the model's own tensors.
        given: of the file, under the same names.
        name: of the model.

    Raises:
        ValueError: a tensor has no memory of its own for each number; or two share theirs, and the
            file has two different ones for them.
    """
    if any(tensor.is_meta for tensor in target.values()):
        raise ValueError("the model is on the meta device: call model.to_empty(device=...) first")
    closed = [n for n, t in target.items() if not _is_writable(t)]
    if closed:
        raise ValueError(
            f"{len(closed)} tensors of {name} cannot be written: they are expanded, sparse, "
            f"quantised or made in inference mode: {some_of(closed)}. Give the model plain "
            "parameters, as create_model does"
        )
    for first, second in _sharing(target):
        ours, theirs = (target[n] for n in (first, second))
        tied = _geometry(ours) == _geometry(theirs)
        if not tied or not torch.equal(given[first].to(ours.dtype), given[second].to(ours.dtype)):
            raise ValueError(
                f"{first} and {second} share memory in {name}, and are two different tensors in "
                "the file: untie them first, or take a file in which they are equal"
            )


def _is_writable(tensor: Tensor) -> bool:
    return (
        tensor.layout == torch.strided
        and not tensor.is_quantized
        and torch._debug_has_internal_overlap(tensor) != 1
        and not (tensor.is_inference() and not torch.is_inference_mode_enabled())
    )


def _sharing(target: State) -> Iterator[tuple[str, str]]:
    """Pairs of tensors that have memory in common."""
    storages: dict[tuple[torch.device, int], list[str]] = defaultdict(list)
    for name, tensor in target.items():
        if tensor.numel():
            storages[tensor.device, tensor.untyped_storage().data_ptr()].append(name)
    for names in storages.values():
        yield from ((a, b) for a, b in combinations(names, 2) if _overlap(target[a], target[b]))


def _overlap(first: Tensor, second: Tensor) -> bool:
    (start, end), (other_start, other_end) = _bytes(first), _bytes(second)
    if start >= other_end or other_start >= end:
        return False
    if first.dtype != second.dtype:
        return True
    # Columns of one matrix lie among each other, and have no number in common.
    used = torch.zeros(max(end, other_end) // first.element_size(), dtype=torch.bool)
    _same_place(used, first).fill_(True)
    return bool(_same_place(used, second).any())


def _same_place(numbers: Tensor, tensor: Tensor) -> Tensor:
    return numbers.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def _bytes(tensor: Tensor) -> tuple[int, int]:
    """First byte of a tensor in its storage, and the one behind its last."""
    start, size = int(tensor.storage_offset()), tensor.element_size()
    last = start + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return start * size, (last + 1) * size


def _geometry(tensor: Tensor) -> tuple[object, ...]:
    return tensor.dtype, tensor.shape, tensor.stride(), tensor.storage_offset()
