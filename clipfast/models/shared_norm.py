"""Which pairs a model's batch norms take together: parts of a batch, or the batches of ranks.

share_statistics(model, groups=4)                     # ghost batch norm, within a batch
share_statistics(model, group=dist.group.WORLD)       # over the ranks of a group
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from clipfast.models.batch_norm import BatchNorm2d
from clipfast.ops.batch_norm import Sharing


@dataclass(frozen=True)
class RankSharing(Sharing):
    """Statistics shared by the ranks of a group.

    Attributes:
        group_name: of the process group; a name can be copied with a model.
    """

    group_name: str = ""

    def sum(self, values: Tensor) -> Tensor:
        """See `Sharing.sum`: every rank calls it, and the same bits come out on each."""
        reduced = torch.ops._c10d_functional.all_reduce(values, "sum", self.group_name)
        return torch.ops._c10d_functional.wait_tensor(reduced)


def batch_norms(model: nn.Module) -> list[BatchNorm2d]:
    """The batch norms of a model, in its order."""
    return [module for module in model.modules() if isinstance(module, BatchNorm2d)]


def share_statistics(
    model: nn.Module,
    *,
    groups: int = 1,
    group: dist.ProcessGroup | None = None,
    once_a_step: bool = False,
) -> None:
    """Tell every batch norm of a model whose pairs it takes together in training.

    Args:
        model: any module; one without batch norms stays as it is.
        groups: parts of each batch with statistics of their own; divides its size.
        group: the ranks that share a part's statistics; they must bring batches of one size and
            run every forward and backward pass together. None: each rank for itself.
        once_a_step: the running statistics wait for `settle_statistics`.
    """
    sharing = Sharing(groups)
    if group is not None and group.size() > 1:
        sharing = RankSharing(groups, group.size(), group.group_name)
    for module in batch_norms(model):
        module.sharing = None if sharing == Sharing() else sharing
        module.once_a_step = once_a_step


def settle_statistics(model: nn.Module) -> None:
    """Move the running statistics once: toward the mean of what all groups of all ranks had since
    the last time. A collective of all ranks; nothing happens without `once_a_step`.

    Whichever ranks and batches the groups came in, the statistics are the same, to rounding.

    Args:
        model: its batch norms have met as many groups on every rank.
    """
    waiting = [module for module in batch_norms(model) if module.met is not None]
    if not waiting:
        return
    flat = torch.cat([values for module in waiting for values in module.take_met()])
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
    sizes = [module.num_features for module in waiting for _ in range(2)]
    parts = iter(flat.split(sizes))
    for module in waiting:
        module.move_running(next(parts), next(parts))
