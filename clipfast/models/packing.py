"""Captions without padding: which tokens of a batch are computed, and how they lie in memory.

The text tower is causal and read at the end-of-text token, so tokens behind it change neither the
features nor any gradient. They are left out: of 77 positions, captions from the web fill about 20.

Legend: B captions, L positions a row, T tokens that are computed, C width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clipfast.devices import to_device
from clipfast.models.sequences import GroupedLayout, SequenceLayout, VarlenLayout, has_varlen

# What one more group costs in a block, forward and backward, as floating-point operations that
# could be done instead: some 80 us of calls at 0.2 TFLOP/s, some 100 us of launches at 60 TFLOP/s.
_GROUP_FLOP = {"cpu": 1.6e7, "cuda": 6e9}
# Forward and backward of a block: three times 2 * 12 C^2 a token.
_TOKEN_FLOP = 72
# Rows of packed tensors are a multiple of this where flash attention serves: aligned products, and
# few shapes for libraries to choose kernels and allocate memory for.
_ROUND_TO = 64


@dataclass(frozen=True)
class PackedCaptions:
    """The tokens of a batch that are computed.

    Attributes:
        index: [T] int64, where each lies in the flattened [B, L] tokens.
        positions: [T] int64, its place in its caption.
        layout: how captions lie in [T, C], read at their end-of-text tokens.
    """

    index: Tensor
    positions: Tensor
    layout: SequenceLayout


def pack_captions(
    tokens: Tensor,
    lengths: Tensor | None = None,
    *,
    width: int,
    heads: int,
    dtype: torch.dtype = torch.float32,
) -> PackedCaptions:
    """Choose the tokens to compute and their order.

    On a GPU of sm_80 or newer, with torch 2.11 and half precision, captions follow each other
    without a gap. Elsewhere they are sorted by length into dense groups, each as long as its
    longest caption; the groups are those that minimise

        sum over groups of (captions * longest) + cost of a group * groups

    so that a CPU gets a group for each length, and a GPU few.

    Args:
        tokens: [B, L] int64; the end-of-text token is the largest id of its row.
        lengths: [B] int64 on the CPU, tokens up to and including end-of-text; None finds them in
            `tokens`, for which a GPU must be waited for.
        width: channels C, from which follows what a token costs.
        heads: attention heads.
        dtype: of the activations.

    Returns:
        Indices and layout, on the device of `tokens`.

    Raises:
        ValueError: `lengths` has another shape, lies on a GPU, or exceeds [1, L].
    """
    if lengths is None:
        lengths = (tokens.argmax(dim=-1) + 1).cpu()
    _check(tokens, lengths)
    if len(tokens) and _varlen_serves(tokens.device, dtype, width // heads):
        return _in_one_sequence(tokens, lengths)
    flop = _GROUP_FLOP.get(tokens.device.type, _GROUP_FLOP["cuda"])
    return _in_groups(tokens, lengths, group_cost=flop / (_TOKEN_FLOP * width**2))


def _check(tokens: Tensor, lengths: Tensor) -> None:
    batch, context = tokens.shape
    if tuple(lengths.shape) != (batch,) or lengths.device.type != "cpu":
        raise ValueError(
            f"expected lengths [{batch}] on the CPU beside tokens {list(tokens.shape)}, got "
            f"{list(lengths.shape)} on {lengths.device}: pass Batch.lengths, or None"
        )
    if batch and (int(lengths.min()) < 1 or int(lengths.max()) > context):
        raise ValueError(
            f"lengths must lie between 1 and the {context} positions of tokens, got "
            f"{int(lengths.min())} to {int(lengths.max())}"
        )


def _varlen_serves(device: torch.device, dtype: torch.dtype, head_width: int) -> bool:
    return (
        device.type == "cuda"
        and dtype in (torch.float16, torch.bfloat16)
        and head_width % 8 == 0
        and head_width <= 256
        and torch.cuda.get_device_capability(device) >= (8, 0)
        and has_varlen()
    )


def _round_up(tokens: int) -> int:
    return -(-tokens // _ROUND_TO) * _ROUND_TO


def _in_one_sequence(tokens: Tensor, lengths: Tensor) -> PackedCaptions:
    """Captions in the order of the batch, then a filler of 1 to `_ROUND_TO` rows."""
    (batch, context), device = tokens.shape, tokens.device
    total = int(lengths.sum())
    rounded = _round_up(total + 1)
    sizes = to_device(torch.cat([lengths, torch.tensor([rounded - total])]), device)
    captions, positions, starts = _rows(sizes, rounded)
    is_filler = captions == batch
    positions = positions.masked_fill(is_filler, 0)
    layout = VarlenLayout(
        offsets=torch.cat([starts, starts[-1:] + sizes[-1:]]).to(torch.int32),
        queries=torch.arange(batch + 2, dtype=torch.int32, device=device),
        ends=starts + sizes - 1,
        longest=_round_up(context),  # few values: a compiled block is guarded by it
    )
    index = (captions * context + positions).masked_fill(is_filler, 0)
    return PackedCaptions(index, positions, layout)


def _in_groups(tokens: Tensor, lengths: Tensor, group_cost: float) -> PackedCaptions:
    """Captions sorted by length, in dense groups."""
    context, device = tokens.shape[1], tokens.device
    ordered, order = lengths.sort(stable=True)
    groups = plan_groups(ordered.tolist(), group_cost) or [(0, 1)]
    counts, longest = torch.tensor(groups).unbind(1)
    is_ragged = [
        bool((part < n).any())
        for part, (_, n) in zip(ordered.split(counts.tolist()), groups, strict=True)
    ]
    # One copy to the device, from which the rest follows there.
    columns = torch.stack([longest.repeat_interleave(counts), order, ordered])
    sizes, order, own = to_device(columns, device)
    captions, positions, starts = _rows(sizes, int((counts * longest).sum()))
    masks, first = [], 0
    for (count, length), ragged in zip(groups, is_ragged, strict=True):
        inside = torch.arange(length, device=device) < own[first : first + count, None]
        masks.append(inside[:, None, None] if ragged else None)
        first += count
    inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=device))
    layout = GroupedLayout(groups, ends=starts + own - 1, inverse=inverse, masks=masks)
    return PackedCaptions(order[captions] * context + positions, positions, layout)


def _rows(sizes: Tensor, total: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of rows that lie in runs of these sizes: the run of each [T], its place in it [T], and where
    each run begins."""
    runs = torch.arange(len(sizes), device=sizes.device)
    runs = runs.repeat_interleave(sizes, output_size=total)
    starts = sizes.cumsum(0) - sizes
    return runs, torch.arange(total, device=sizes.device) - starts[runs], starts


def plan_groups(lengths: Sequence[int], group_cost: float) -> list[tuple[int, int]]:
    """The cheapest division of sorted lengths into consecutive groups.

        minimise  sum_g n_g L_g + group_cost * (number of groups),   L_g the longest of group g

    Args:
        lengths: ascending.
        group_cost: what a group costs, in tokens.

    Returns:
        (captions, longest) of each group; none for no captions.
    """
    distinct, counts = np.unique(np.asarray(lengths, dtype=np.int64), return_counts=True)
    total = np.concatenate([[0], counts.cumsum()])
    best = np.zeros(len(distinct) + 1)  # cost of the lengths before each
    start = np.zeros(len(distinct) + 1, dtype=np.int64)  # of the group that ends before each
    for end in range(1, len(best)):
        costs = best[:end] + (total[end] - total[:end]) * distinct[end - 1] + group_cost
        start[end] = costs.argmin()
        best[end] = costs[start[end]]
    groups = []
    end = len(distinct)
    while end:
        begin = int(start[end])
        groups.append((int(total[end] - total[begin]), int(distinct[end - 1])))
        end = begin
    return groups[::-1]
