"""The collectives of the loss. All of them run in rank order, so results repeat bit for bit.

They are torch's functional collectives: each returns at once, and `wait` makes its result
usable. torch.compile takes them into its graph. On the CPU each is waited for before it is handed
out: with two of them under way, gloo's threads corrupted the heap (torch 2.13; plain torch does so
too: two all_gather_into_tensor in a loop, one process in about ten dies of it), and threads that
send would only take the cores from the towers. ``CLIPFAST_CPU_GATHER=hidden`` leaves one under way.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from clipfast.ops.normalize import DTYPES
from clipfast.ops.registry import Operator, declare

VARIABLE = "CLIPFAST_CPU_GATHER"


@dataclasses.dataclass(frozen=True)
class BatchShares:
    """Which ranks hold the global batch, and how much of it each."""

    group_name: str | None  # None: one process, no collective runs
    rank: int
    sizes: tuple[int, ...]  # pairs on each rank
    is_assumed: bool = False  # equal sizes, which nobody has asked the other ranks about

    @property
    def world_size(self) -> int:
        return len(self.sizes)

    @property
    def global_batch(self) -> int:
        return sum(self.sizes)

    @property
    def first_column(self) -> int:
        """Where this rank's pairs start in the global batch."""
        return sum(self.sizes[: self.rank])

    @property
    def is_ragged(self) -> bool:
        return len(set(self.sizes)) > 1


def find_shares(
    features: Tensor,
    group: dist.ProcessGroup | Literal["local"] | None,
    batch_sizes: Sequence[int] | None,
) -> BatchShares:
    """The shares of a batch; asks the other ranks for their sizes where `batch_sizes` is None.

    Args:
        features: [B, D], this rank's.
        group: the ranks; None is the default group where torch.distributed is initialised; "local"
            is this process alone.
        batch_sizes: pairs on each rank, where the caller knows them.

    Returns:
        The shares, the same on every rank but for `rank`.

    Raises:
        ValueError: on every rank, where ranks differ in width or type of their features; on this
            one alone, where its batch is not what `batch_sizes` says.
    """
    batch = features.shape[0]
    is_joined = dist.is_available() and dist.is_initialized()
    if group == "local" or not is_joined or dist.get_world_size(group) == 1:
        if batch_sizes is not None and list(batch_sizes) != [batch]:
            raise ValueError(
                f"batch_sizes: expected the size of this one process, [{batch}], got "
                f"{list(batch_sizes)}"
            )
        return BatchShares(None, 0, (batch,))
    world_size, rank = dist.get_world_size(group), dist.get_rank(group)
    shared = dist.group.WORLD if group is None else group
    assert shared is not None
    name = shared.group_name
    if batch_sizes is not None:
        if len(batch_sizes) != world_size or batch_sizes[rank] != batch:
            raise ValueError(
                f"batch_sizes: expected the sizes of {world_size} ranks with {batch} at rank "
                f"{rank}, got {list(batch_sizes)}"
            )
        return BatchShares(name, rank, tuple(int(size) for size in batch_sizes))
    if torch.compiler.is_compiling():
        # Shapes are constants of a compiled graph: every rank must bring the same.
        return BatchShares(name, rank, (batch,) * world_size, is_assumed=True)
    return BatchShares(name, rank, _exchange_sizes(features, group))


def _exchange_sizes(features: Tensor, group: dist.ProcessGroup | None) -> tuple[int, ...]:
    """Every rank's number of pairs. Over the group's CPU backend where it has one, so that the
    host does not wait for the GPU."""
    mine = [features.shape[0], features.shape[1], DTYPES.index(features.dtype)]
    device = features.device
    if device.type != "cpu" and "cpu" in str(dist.get_backend_config(group)):
        device = torch.device("cpu")
    message = torch.tensor(mine, device=device)
    messages = [torch.empty_like(message) for _ in range(dist.get_world_size(group))]
    dist.all_gather(messages, message, group=group)
    everyone = torch.stack(messages).tolist()
    if len({(width, dtype) for _, width, dtype in everyone}) > 1:
        raise ValueError(
            "every rank must bring features of one width and type; ranks bring "
            + ", ".join(f"[{b}, {d}] {DTYPES[t]}" for b, d, t in everyone)
        )
    return tuple(batch for batch, _, _ in everyone)


def require_equal_batches(features: Tensor, shares: BatchShares) -> Tensor:
    """Inside a compiled graph: the check that `find_shares` makes outside.

    Returns:
        A zero, fp32 [1], to be added to something: what nobody reads is not computed.
    """
    return torch.ops.clipfast.require_equal_batches(features, shares.group_name)


def _require_equal_batches(features: Tensor, group_name: str) -> Tensor:
    resolve: Any = getattr(dist.distributed_c10d, "_resolve_process_group")  # noqa: B009
    group = resolve(group_name)
    sizes = _exchange_sizes(features, group)
    if len(set(sizes)) > 1:
        raise ValueError(
            f"under torch.compile every rank must hold the same number of pairs; ranks hold "
            f"{list(sizes)}. Drop the last incomplete batch (drop_last=True), or keep the loss "
            "out of the compiled function."
        )
    return features.new_zeros(1, dtype=torch.float32)


declare(
    Operator(
        name="require_equal_batches",
        schema="(Tensor features, str group_name) -> Tensor",
        plain=_require_equal_batches,
        fake=lambda features, group_name: features.new_empty(1, dtype=torch.float32),
    )
)


def overlaps(tensor: Tensor) -> bool:
    """Whether a collective of this tensor may still be under way when another one starts."""
    return tensor.device.type != "cpu"


def hides_on_a_cpu() -> bool:
    """Whether a gather that is alone under way is left so on a CPU, as it is on a GPU.

    ``CLIPFAST_CPU_GATHER=hidden`` says so. It is worth it where ranks lie on several hosts and a
    message takes long. The towers must send nothing meanwhile.

    Raises:
        ValueError: the variable says something else than ``hidden`` or ``awaited``.
    """
    said = os.environ.get(VARIABLE, "awaited")
    if said not in ("hidden", "awaited"):
        raise ValueError(f"{VARIABLE} is hidden or awaited; got {said!r}")
    return said == "hidden"


def start_gather(local: Tensor, shares: BatchShares) -> Tensor:
    """Start gathering every rank's rows; `finish_gather` makes them usable.

    Args:
        local: [B, ...] of this rank.
        shares: B of every rank.

    Returns:
        Rows of all ranks, still on their way where it `overlaps`, padded to the largest
        batch where batches differ.
    """
    if shares.group_name is None:
        return local
    pending = _gathering(local, shares)
    return pending if overlaps(local) else wait(pending, shares)


def start_gather_of_both(
    rows: Tensor, values: Tensor, shares: BatchShares
) -> tuple[Tensor, Tensor]:
    """Start gathering rows and a value of each. No other collective may start before
    `finish_gather_of_both`: where `hides_on_a_cpu` says so they are one message, alone under way.

    Args:
        rows: [B, D] of this rank.
        values: [B], of any type.
        shares: B of every rank.

    Returns:
        Both, on their way as `start_gather` says; the second is empty where the first holds it.
    """
    if shares.group_name is None or overlaps(rows) or not hides_on_a_cpu():
        pending = start_gather(values, shares)
        return start_gather(rows, shares), pending
    columns = [each.contiguous().view(torch.uint8) for each in (rows, values[:, None])]
    return _gathering(torch.cat(columns, 1), shares), values.new_empty(0)


def finish_gather_of_both(
    rows: Tensor, values: Tensor, shares: BatchShares, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Wait for `start_gather_of_both`: [G, D] and [G] in rank order.

    Args:
        rows, values: as it returned them.
        shares: the same.
        dtype: of the rows.
    """
    rows = finish_gather(rows, shares)
    if values.numel() or shares.group_name is None:
        return rows, finish_gather(values, shares)
    width = rows.shape[1] - values.element_size()
    both = rows[:, :width].contiguous(), rows[:, width:].contiguous()
    return both[0].view(dtype), both[1].view(values.dtype)[:, 0]


def _gathering(local: Tensor, shares: BatchShares) -> Tensor:
    return torch.ops._c10d_functional.all_gather_into_tensor(
        _pad(local.contiguous(), max(shares.sizes)), shares.world_size, shares.group_name
    )


def finish_gather(pending: Tensor, shares: BatchShares) -> Tensor:
    """Wait for `start_gather`: [G, ...] in rank order."""
    if shares.group_name is None:
        return pending
    gathered = torch.ops._c10d_functional.wait_tensor(pending)
    if not shares.is_ragged:
        return gathered
    blocks = zip(gathered.chunk(shares.world_size), shares.sizes, strict=True)
    return torch.cat([block[:size] for block, size in blocks])


def start_reduce_scatter(partial: Tensor, shares: BatchShares) -> Tensor:
    """Start summing [G, D] over the ranks, each of which receives its own rows.

    Returns:
        [B, D], still on its way where it `overlaps`: use it after `wait`.
    """
    if shares.group_name is None:
        return partial
    largest = max(shares.sizes)
    if shares.is_ragged:
        ends = list(itertools.accumulate(shares.sizes))
        blocks = [partial[e - s : e] for s, e in zip(shares.sizes, ends, strict=True)]
        partial = torch.cat([_pad(block, largest) for block in blocks])
    pending = torch.ops._c10d_functional.reduce_scatter_tensor(
        partial, "sum", shares.world_size, shares.group_name
    )
    return pending if overlaps(partial) else wait(pending, shares)


def wait(pending: Tensor, shares: BatchShares) -> Tensor:
    """The result of `start_reduce_scatter` once it has arrived."""
    if shares.group_name is None:
        return pending
    return torch.ops._c10d_functional.wait_tensor(pending)


def all_reduce(value: Tensor, operation: str, shares: BatchShares) -> Tensor:
    """The "sum" or "max" of a tensor over the ranks."""
    if shares.group_name is None:
        return value
    reduced = torch.ops._c10d_functional.all_reduce(value, operation, shares.group_name)
    return torch.ops._c10d_functional.wait_tensor(reduced)


def _pad(rows: Tensor, size: int) -> Tensor:
    missing = size - rows.shape[0]
    return rows if missing == 0 else torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])])
