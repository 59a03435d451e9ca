"""How the sequences of a batch lie one after another in one [T, C] tensor, and attention over them.

Everything in a transformer but attention works on single tokens, so a batch needs no padding: its
sequences are laid end to end, and only the layout knows where one ends. It also knows the one token
of each sequence that the tower's output is read from. The last block needs keys and values of all
tokens, but a query, an output projection and an MLP of that token alone.

Legend: B sequences, T tokens of all of them, C width, H heads, d = C / H.
"""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.nn import functional as F


class SequenceLayout(ABC):
    """Where each sequence lies in x [T, C], and which of its tokens is read."""

    @abstractmethod
    def attend(self, qkv: Tensor, heads: int) -> Tensor:
        """softmax(q k^T / sqrt(d)) v within each sequence.

        Args:
            qkv: [T, 3C], queries, keys and values side by side.
            heads: H.

        Returns:
            [T, C].
        """

    @abstractmethod
    def attend_read(self, q: Tensor, kv: Tensor, heads: int) -> Tensor:
        """The rows of `attend` that are read, from their queries alone.

        Args:
            q: [B, C], in the order of `read`.
            kv: [T, 2C], keys and values side by side.
            heads: H.

        Returns:
            [B, C].
        """

    @abstractmethod
    def read(self, x: Tensor) -> Tensor:
        """The token of each sequence that is read.

        Args:
            x: [T, C].

        Returns:
            [B, C], in the order in which the sequences lie.
        """

    def restore(self, features: Tensor) -> Tensor:
        """Rows [B, D] in the order in which the sequences lie -> in the order of the batch."""
        return features


class UniformLayout(SequenceLayout):
    """Sequences of one length that attend to all of themselves, read at their first token: images.

    Args:
        batch: sequences B.
        length: tokens of each; T = B * length.
    """

    def __init__(self, batch: int, length: int) -> None:
        self.batch, self.length = batch, length

    def attend(self, qkv: Tensor, heads: int) -> Tensor:
        """See `SequenceLayout.attend`."""
        return _attend(qkv, self.batch, self.length, heads, is_causal=False)

    def attend_read(self, q: Tensor, kv: Tensor, heads: int) -> Tensor:
        """See `SequenceLayout.attend_read`."""
        return _attend_one(q, kv, self.batch, self.length, heads, None)

    def read(self, x: Tensor) -> Tensor:
        """See `SequenceLayout.read`."""
        return x.view(self.batch, self.length, x.shape[1])[:, 0]


class GroupedLayout(SequenceLayout):
    """Causal sequences sorted into dense groups [n, L], read at their ends.

    Tokens between a sequence's end and its group's length are computed and seen by none that is
    read. No token is copied: a group is a view of consecutive rows.

    Args:
        groups: (n, L) of each group, in the order in which they lie.
        ends: [B] int64, the row of each sequence's last token.
        inverse: [B] int64, where each sequence of the batch lies among the sorted ones.
        masks: for each group None where its sequences have all L tokens, else [n, 1, 1, L] bool,
            True for the tokens of a sequence.
    """

    def __init__(
        self,
        groups: Sequence[tuple[int, int]],
        ends: Tensor,
        inverse: Tensor,
        masks: Sequence[Tensor | None],
    ) -> None:
        self.groups, self.ends, self.inverse, self.masks = groups, ends, inverse, masks

    # The shapes of the groups differ from batch to batch: compiled, each would be another graph.
    # `torch.compiler.disable` says the same, and imports the compiler already here: 2 s of a start.
    @_disable_dynamo
    def attend(self, qkv: Tensor, heads: int) -> Tensor:
        """See `SequenceLayout.attend`."""
        parts = qkv.split([n * length for n, length in self.groups])
        return torch.cat(
            [
                _attend(part, n, length, heads, is_causal=True)
                for part, (n, length) in zip(parts, self.groups, strict=True)
            ]
        )

    @_disable_dynamo
    def attend_read(self, q: Tensor, kv: Tensor, heads: int) -> Tensor:
        """See `SequenceLayout.attend_read`."""
        queries = q.split([n for n, _ in self.groups])
        parts = kv.split([n * length for n, length in self.groups])
        return torch.cat(
            [
                _attend_one(query, part, n, length, heads, mask)
                for query, part, (n, length), mask in zip(
                    queries, parts, self.groups, self.masks, strict=True
                )
            ]
        )

    @_disable_dynamo
    def read(self, x: Tensor) -> Tensor:
        """See `SequenceLayout.read`."""
        return x.index_select(0, self.ends)

    def restore(self, features: Tensor) -> Tensor:
        """See `SequenceLayout.restore`."""
        return features.index_select(0, self.inverse)


class VarlenLayout(SequenceLayout):
    """Causal sequences in the order of the batch, read at their ends, through flash attention.

    A last sequence of one row or more fills T up to a round number. It has a query like the others,
    which `restore` drops: the backward pass of flash attention writes no gradient for keys outside
    of every sequence it is given, or without a query, and what lies there is anything.

    Args:
        offsets: [B + 2] int32, where each of the B + 1 sequences begins, and T.
        queries: [B + 2] int32, 0 ... B + 1: the offsets of one query a sequence.
        ends: [B + 1] int64, the row of each sequence's last token.
        longest: bound on the length of a sequence.
    """

    def __init__(self, offsets: Tensor, queries: Tensor, ends: Tensor, longest: int) -> None:
        self.offsets, self.queries, self.ends, self.longest = offsets, queries, ends, longest

    def attend(self, qkv: Tensor, heads: int) -> Tensor:
        """See `SequenceLayout.attend`."""
        q, k, v = qkv.view(qkv.shape[0], 3, heads, -1).unbind(1)
        longest = self.longest
        out = _varlen(q, k, v, self.offsets, self.offsets, longest, longest, is_causal=True)
        return out.reshape(qkv.shape[0], -1)

    def attend_read(self, q: Tensor, kv: Tensor, heads: int) -> Tensor:
        """See `SequenceLayout.attend_read`."""
        query = q.view(q.shape[0], heads, -1)
        k, v = kv.view(kv.shape[0], 2, heads, -1).unbind(1)
        offsets, queries, longest = self.offsets, self.queries, self.longest
        # The end sees every token of its sequence: one query, no mask.
        out = _varlen(query, k, v, queries, offsets, 1, longest, is_causal=False)
        return out.reshape(q.shape[0], -1)

    def read(self, x: Tensor) -> Tensor:
        """See `SequenceLayout.read`; one row more, the filler's."""
        return x.index_select(0, self.ends)

    def restore(self, features: Tensor) -> Tensor:
        """See `SequenceLayout.restore`."""
        return features[:-1]


@functools.cache
def has_varlen() -> bool:
    """Whether this torch (2.11 or newer) has attention over sequences of unequal length.

    Asked where captions are packed: compiled blocks would trace it anew.
    """
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return "window_size" in inspect.signature(varlen_attn).parameters


def _varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets_q: Tensor,
    offsets_k: Tensor,
    longest_q: int,
    longest_k: int,
    *,
    is_causal: bool,
) -> Tensor:
    """softmax(q k^T / sqrt(d)) v on [T, H, d], by torch's flash attention."""
    from torch.nn.attention.varlen import varlen_attn

    window = (-1, 0) if is_causal else (-1, -1)
    attended: Any = varlen_attn(
        q, k, v, offsets_q, offsets_k, longest_q, longest_k, window_size=window
    )
    return attended


def _attend(qkv: Tensor, batch: int, length: int, heads: int, is_causal: bool) -> Tensor:
    """Attention among [batch, length] dense sequences: [batch * length, 3C] -> [..., C]."""
    width = qkv.shape[1] // 3
    parts = qkv.view(batch, length, 3, heads, width // heads)
    q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
    out = F.scaled_dot_product_attention(q, k, v, is_causal=is_causal)
    return out.transpose(1, 2).reshape(batch * length, width)


def _attend_one(
    q: Tensor, kv: Tensor, batch: int, length: int, heads: int, mask: Tensor | None
) -> Tensor:
    """One query a dense sequence: [batch, C] and [batch * length, 2C] -> [batch, C]."""
    width = q.shape[1]
    query = q.view(batch, heads, 1, width // heads)
    parts = kv.view(batch, length, 2, heads, width // heads)
    k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
    out = F.scaled_dot_product_attention(query, k, v, attn_mask=mask)
    return out.reshape(batch, width)
