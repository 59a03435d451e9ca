"""The collectives of the loss. All of them run in rank order, so results repeat bit for bit."""

import torch
import torch.distributed as dist
from torch import Tensor

_checked_groups: set[object] = set()


class _GatherFeatures(torch.autograd.Function):
    """All-gather of equal ``[B, D]`` blocks; the backward sums what all ranks send."""

    @staticmethod
    def forward(ctx, features: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        world_size = dist.get_world_size(group)
        gathered = features.new_empty(world_size * features.shape[0], features.shape[1])
        dist.all_gather_into_tensor(gathered, features.contiguous(), group=group)
        return gathered

    @staticmethod
    def backward(ctx, grad_gathered: Tensor) -> tuple[Tensor, None]:
        world_size = dist.get_world_size(ctx.group)
        rows = grad_gathered.shape[0] // world_size
        grad_features = grad_gathered.new_empty(rows, grad_gathered.shape[1])
        dist.reduce_scatter_tensor(grad_features, grad_gathered.contiguous(), group=ctx.group)
        return grad_features, None


def gather_features(features: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """All ranks' features in rank order, with gradients that flow back to their owners.

    Args:
        features: ``[B, D]``, B equal on every rank of ``group``.
        group: the ranks; None is the default group.

    Returns:
        ``[G, D]``. Its backward is one reduce-scatter with a sum.
    """
    return _GatherFeatures.apply(features, group)


def mean_over_ranks(value: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The mean of a detached tensor over the ranks of ``group``."""
    value = value.clone()
    dist.all_reduce(value, group=group)
    return value / dist.get_world_size(group)


def require_equal_batches(features: Tensor, group: dist.ProcessGroup | None) -> None:
    """Raise the same ValueError on every rank when batch sizes differ between ranks.

    An all-gather of unequal blocks would hang or mix up rows. On a GPU, where reading the sizes
    waits for the device, only a group's first call is checked; on a CPU every call.
    """
    on_gpu = features.device.type == "cuda"
    if on_gpu and group in _checked_groups:
        return
    sizes = torch.zeros(dist.get_world_size(group), dtype=torch.int64, device=features.device)
    sizes[dist.get_rank(group)] = features.shape[0]
    dist.all_reduce(sizes, group=group)
    if len(set(sizes.tolist())) > 1:
        raise ValueError(
            f"every rank must hold the same number of pairs; ranks hold {sizes.tolist()}. "
            "Drop the last incomplete batch (drop_last=True) or pad it."
        )
    _checked_groups.add(group)
