"""Parameters in DeepSpeed's flat tensors, each on a grid of its own.

fp16 statistics share an exponent in blocks of 256 elements. A block that two ranks divide, or that
two parameters share, could not be dealt out to other ranks without rounding. So every parameter
begins at a multiple of 256 elements of the flat tensor that it is laid into, and every rank's part
ends at one. A block then belongs to one parameter and one rank, and is the same block whatever the
ranks and the stage of ZeRO. It costs up to 255 elements per parameter at stages 1 and 2, and up to
256 per parameter and rank at stage 3.

This is what is changed in DeepSpeed 0.19: how it flattens (stages 1 and 2), and how it pads a
parameter for its ranks and cuts its gradient accordingly (stage 3). ``places`` refuses a DeepSpeed
that lays them out otherwise.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from clipfast.ops.adamw import BLOCK


@contextmanager
def on_the_grid() -> Iterator[None]:
    """Within it ``deepspeed.initialize`` makes optimizers that keep to the grid."""
    from deepspeed.runtime import engine

    _keep_stage_3_to_the_grid()
    names = ("DeepSpeedZeroOptimizer", "BF16_Optimizer")
    before = {name: getattr(engine, name) for name in names}
    engine.DeepSpeedZeroOptimizer = _flat_optimizer_on_the_grid()
    engine.BF16_Optimizer = _bf16_optimizer_on_the_grid()
    try:
        yield
    finally:
        for name, kind in before.items():
            setattr(engine, name, kind)


def offsets_of(sizes: Sequence[int]) -> list[int]:
    """Where tensors of these sizes begin in a flat one, and behind them its end."""
    return [0, *itertools.accumulate(_up(size, BLOCK) for size in sizes)]


def flat_size(sizes: Sequence[int], ranks: int) -> int:
    """Elements of the flat tensor that parameters of these sizes are laid into, at stages 1 and
    2."""
    return _up(offsets_of(sizes)[-1], BLOCK * ranks)


def whole_size(size: int, ranks: int) -> int:
    """Elements of a parameter's parts on all ranks together, at stage 3."""
    return _up(size, BLOCK * ranks)


def _up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _padded(tensors: Sequence[Tensor], ranks: int) -> list[Tensor]:
    """The tensors with zeros between and behind them, so that each rank's part is on the grid."""
    padded = []
    for tensor in tensors:
        padded += [tensor, tensor.new_zeros(-tensor.numel() % BLOCK)]
    count = sum(tensor.numel() for tensor in padded)
    return [*padded, tensors[0].new_zeros(-count % (BLOCK * ranks))]


def _flat_optimizer_on_the_grid() -> Any:
    """DeepSpeed's optimizer of stages 1 and 2. It knows padding between parameters, of 16 bytes."""
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    class FlatOptimizer(DeepSpeedZeroOptimizer):
        def flatten_dense_tensors_aligned(
            self,
            tensor_list: list[Tensor],
            alignment: int,
            use_cpu_data: bool = False,
            param_padding: list[int] | None = None,
        ) -> Any:
            if param_padding is not None:
                # These lists are what it looks at from here on; the last parameter ends the group.
                sizes = [meta.numel() for meta in self.round_robin_bit16_meta[-1]]
                offsets = offsets_of(sizes)
                param_padding[:] = [-size % BLOCK for size in sizes[:-1]] + [0]
                self.round_robin_bit16_offsets[-1][:] = offsets[:-1]
                # It counts two elements for each rank.
                alignment *= BLOCK // 2
            return super().flatten_dense_tensors_aligned(
                tensor_list, alignment, use_cpu_data, param_padding
            )

    return FlatOptimizer


def _bf16_optimizer_on_the_grid() -> Any:
    """DeepSpeed's optimizer of stage 1 in bf16 where gradients are summed in float32."""
    from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
    from deepspeed.utils import link_hp_params

    class Bf16Optimizer(BF16_Optimizer):
        def _flatten_dense_tensors_aligned(
            self, tensor_list: list[Tensor], alignment: int
        ) -> Tensor:
            return self.flatten(_padded(tensor_list, alignment // self.nccl_start_alignment_factor))

        def _update_storage_to_flattened_tensor(
            self, tensor_list: list[Tensor], flat_tensor: Tensor
        ) -> None:
            offsets = offsets_of([tensor.numel() for tensor in tensor_list])
            for tensor, offset in zip(tensor_list, offsets, strict=False):
                tensor.data = flat_tensor.narrow(0, offset, tensor.numel()).view(tensor.shape)

        def _split_flat_tensor(self, flat_tensor: Tensor, num_elem_list: list[int]) -> list[Tensor]:
            offsets = offsets_of(num_elem_list)
            return [
                flat_tensor.narrow(0, offset, count)
                for offset, count in zip(offsets, num_elem_list, strict=False)
            ]

        def _link_all_hp_params(self) -> None:
            for number, parameters in enumerate(self.bf16_groups):
                flat = self.fp32_groups_flat_partition[number]
                group = self.real_dp_process_group[number]
                link_hp_params(
                    lp_param_list=parameters,
                    flat_hp_partition=flat,
                    gradient_dict=self.fp32_groups_gradient_dict,
                    offload_gradient_dict=None,
                    use_offload=False,
                    param_group_index=number,
                    partition_start=torch.distributed.get_rank(group) * flat.numel(),
                    partition_size=flat.numel(),
                    dp_group=group,
                    param_offsets=offsets_of([p.numel() for p in parameters])[:-1],
                )
                for index, parameter in enumerate(parameters):
                    parameter._index_in_param_group = index

    return Bf16Optimizer


def _keep_stage_3_to_the_grid() -> None:
    """For good: stage 3 cuts parameters and gradients in every step."""
    from deepspeed.runtime.zero import partition_parameters, stage3

    if stage3.reduce_scatter_coalesced is averaged_parts:
        return

    def padding_size(self: Any, param: Any) -> int:
        ranks = self._partition_world_size(param)
        return whole_size(param.ds_numel, ranks) - param.ds_numel

    gather = partition_parameters._dist_allgather_fn

    def gather_padded(part: Tensor, whole: Tensor, group: Any = None) -> Any:
        # A parameter that is gathered alone gets a buffer without the padding.
        count = part.numel() * torch.distributed.get_world_size(group)
        if whole.numel() < count:
            whole.data = whole.new_empty(count)
        return gather(part, whole, group)

    # On one rank nothing is gathered, and a padded part has not the parameter's shape.
    no_gather = partition_parameters._no_gather_coalesced

    def without_padding(some: Iterable[Any]) -> Any:
        params = list(some)
        parts = [(param.ds_tensor, param.ds_tensor.data, param.ds_numel) for param in params]
        for part, data, count in parts:
            part.data = data[:count]
        try:
            return no_gather(params)
        finally:
            for part, data, _ in parts:
                part.data = data

    partition_parameters._dist_allgather_fn = gather_padded
    partition_parameters._no_gather_coalesced = without_padding
    partition_parameters.Init._padding_size = padding_size
    stage3.reduce_scatter_coalesced = averaged_parts


@torch.no_grad()
def averaged_parts(tensors: Sequence[Tensor], group: Any = None) -> list[Tensor]:
    """The averages of gradients over the ranks, of each the part that lies on this rank. Takes the
    place of ``reduce_scatter_coalesced``, which cuts into equal parts.

    Args:
        tensors: of one type, the same shapes on every rank.
        group: of the ranks.

    Returns:
        1-D; shorter than the rank's part, or empty, where the tensor ends.
    """
    from deepspeed import comm

    ranks, rank = comm.get_world_size(group), comm.get_rank(group)
    parts = [whole_size(tensor.numel(), ranks) // ranks for tensor in tensors]
    flats = [tensor.reshape(-1) for tensor in tensors]
    if len(tensors) == 1 and flats[0].numel() == parts[0] * ranks:
        together = flats[0]
    else:
        together = flats[0].new_zeros(ranks, sum(parts))
        at = 0
        for flat, part in zip(flats, parts, strict=True):
            whole = flat.numel() // part
            together[:whole, at : at + part].copy_(flat[: whole * part].view(whole, part))
            if rest := flat.numel() - whole * part:
                together[whole, at : at + rest].copy_(flat[whole * part :])
            at += part
        together = together.view(-1)
    together.div_(ranks)
    own = together.view(ranks, -1)[rank]
    comm.reduce_scatter_fn(own, together, group=group)
    averaged, at = [], 0
    for flat, part in zip(flats, parts, strict=True):
        left = max(0, min(part, flat.numel() - rank * part))
        averaged.append(own[at : at + left])
        at += part
    return averaged
