"""Where a rank holds which elements of which parameter, whatever DeepSpeed made of them."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from clipfast.engine.deepspeed.grid import offsets_of
from clipfast.ops.adamw import BLOCK
from clipfast.optim import FusedAdamW


@dataclass(frozen=True)
class Place:
    """A stretch of a parameter that lies on this rank.

    Attributes:
        name: of the parameter.
        start: of its first element in the parameter.
        count: of its elements.
        offset: of the first element in the holder.
    """

    name: str
    start: int
    count: int
    offset: int


@dataclass(frozen=True)
class Holder:
    """A tensor that the optimizer updates on this rank.

    Attributes:
        tensor: a parameter, its master, or a flat tensor of a rank's part of several.
        group: number of its group of parameters.
        places: what lies in it, in its order.
    """

    tensor: Tensor
    group: int
    places: tuple[Place, ...]


def adam_of(engine: Any) -> Optimizer:
    """The optimizer that DeepSpeed wraps, or does not wrap."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """The whole shape of every parameter, by name."""
    return {
        name: tuple(getattr(parameter, "ds_shape", parameter.shape))
        for name, parameter in module.named_parameters()
    }


def holders(engine: Any) -> list[Holder]:
    """What the optimizer updates on this rank, and what lies where in it.

    Raises:
        RuntimeError: DeepSpeed did not lay the parameters on the grid of ``grid``.
    """
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    found = list(_holders(engine, names))
    for holder in found:
        for place in holder.places:
            if place.start % BLOCK or place.offset % BLOCK:
                raise RuntimeError(
                    f"this DeepSpeed lays {place.name} out otherwise than clipfast counts on: "
                    f"element {place.start} at {place.offset} of its part; install deepspeed 0.19.8"
                )
    return found


def number_elements(engine: Any) -> None:
    """Let every element have its parameter's own random bits, whatever the ranks and the stage.

    Args:
        engine: the DeepSpeed engine; with another optimizer than FusedAdamW nothing is done.

    Raises:
        RuntimeError: as of ``holders``.
    """
    adam, numbers, end = adam_of(engine), {}, 0
    for name, shape in shapes_of(engine.module).items():
        numbers[name] = end
        end += -(-math.prod(shape) // BLOCK) * BLOCK
    for holder in holders(engine):
        if not isinstance(adam, FusedAdamW):
            continue
        # What pads a partition is updated too; its bits are nobody's.
        pieces = {0: end} | {p.offset: numbers[p.name] + p.start for p in holder.places}
        adam.number(holder.tensor, [*pieces], [*pieces.values()])


def _holders(engine: Any, names: Mapping[int, str]) -> Iterator[Holder]:
    optimizer = engine.optimizer
    if hasattr(optimizer, "fp32_partitioned_groups_flat"):
        yield from _at_stage_3(optimizer, names)
    elif hasattr(optimizer, "single_partition_of_fp32_groups"):
        flats = optimizer.single_partition_of_fp32_groups
        yield from _in_flat_partitions(flats, optimizer.round_robin_bit16_groups, names)
    elif hasattr(optimizer, "fp32_groups_flat_partition"):
        flats = optimizer.fp32_groups_flat_partition
        yield from _in_flat_partitions(flats, optimizer.bf16_groups, names)
    elif hasattr(optimizer, "fp16_groups"):
        groups = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
        for number, (halves, masters) in enumerate(groups):
            for half, master in zip(halves, masters, strict=True):
                yield _whole(master, number, names[id(half)])
    else:
        for number, group in enumerate(optimizer.param_groups):
            for parameter in group["params"]:
                yield _whole(parameter, number, names[id(parameter)])


def _whole(tensor: Tensor, group: int, name: str) -> Holder:
    assert tensor.is_contiguous(), name
    return Holder(tensor, group, (Place(name, 0, tensor.numel(), 0),))


def _in_flat_partitions(
    flats: list[Tensor], groups: list[list[Tensor]], names: Mapping[int, str]
) -> Iterator[Holder]:
    """Stages 1 and 2: each group of parameters is one flat tensor, cut into equal parts."""
    for number, (flat, parameters) in enumerate(zip(flats, groups, strict=True)):
        size, places = flat.numel(), []
        begin = dist.get_rank() * size
        offsets = offsets_of([parameter.numel() for parameter in parameters])
        _check_offsets(parameters, offsets, names)
        for parameter, offset in zip(parameters, offsets, strict=False):
            first = max(offset, begin)
            last = min(offset + parameter.numel(), begin + size)
            if first < last:
                name = names[id(parameter)]
                places.append(Place(name, first - offset, last - first, first - begin))
        yield Holder(flat, number, tuple(places))


def _check_offsets(parameters: list[Tensor], offsets: list[int], names: Mapping[int, str]) -> None:
    """The model's own parameters are views of the flat tensor: they tell where they lie."""
    base = parameters[0].data_ptr()
    for parameter, offset in zip(parameters, offsets, strict=False):
        at = (parameter.data_ptr() - base) // parameter.element_size()
        if at != offset:
            raise RuntimeError(
                f"this DeepSpeed lays {names[id(parameter)]} out otherwise than clipfast counts "
                f"on: at {at} of its group, not at {offset}; install deepspeed 0.19.8"
            )


def _at_stage_3(optimizer: Any, names: Mapping[int, str]) -> Iterator[Holder]:
    """Every parameter is cut into equal parts; a rank's parts lie end to end."""
    rank = dist.get_rank()
    flats = optimizer.fp32_partitioned_groups_flat
    for number, (flat, parameters) in enumerate(zip(flats, optimizer.fp16_groups, strict=True)):
        places = []
        for parameter in parameters:
            _, offset, part = optimizer.grad_position[optimizer.get_param_id(parameter)]
            start = rank * part
            count = min(part, parameter.ds_numel - start)
            if part % BLOCK:
                raise RuntimeError(
                    f"this DeepSpeed cuts {names[id(parameter)]} into parts of {part} elements, "
                    f"no multiple of {BLOCK}; install deepspeed 0.19.8"
                )
            if count > 0:
                places.append(Place(names[id(parameter)], start, count, offset))
        yield Holder(flat, optimizer.sub_group_to_group_id[number], tuple(places))
