"""The walk over the strip of logits in plain torch, for any rule.

The walk forms logits for a chunk of rows at a time, leaves pairs out, and multiplies weights with
the features. The rule says what is done with a logit. Legend: B rows, G columns, D width; S, f, g
and the pairs as in clipfast/ops/contrastive.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Strip(NamedTuple):
    """What logits are made of: S_ij = s f_i g_j <x_i, y_j>."""

    x: Tensor  # [B, D]
    y: Tensor  # [G, D], the type of x
    row_factor: Tensor  # [B] f, of the type that sums are held in
    column_factor: Tensor  # [G] g, likewise
    scale: Tensor  # one element s, likewise
    first_column: int  # column of the pair of row 0


class Sums(NamedTuple):
    """Sums of a rule's terms, and what they are relative to."""

    base: Tensor
    total: Tensor


class Rule(Protocol):
    """What a loss does with a logit. It never sees where a chunk lies."""

    nothing: float
    """The base of a sum over nothing."""

    def terms(self, logits: Tensor, columns: Sums) -> tuple[Sums, Sums]:
        """Sums over a chunk.

        Args:
            logits: [b, G]; -inf at the pairs, whose terms must be 0.
            columns: sums [G] over the chunks before; may be overwritten.

        Returns:
            Sums along the chunk's rows [b], and along columns [G] with the chunks before.
        """

    def weights(self, logits: Tensor, row_value: Tensor, column_value: Tensor) -> Tensor:
        """What the features are multiplied with, before the factors f and g.

        Args:
            logits: [b, G]; must not be overwritten.
            row_value: [b], what the caller made of the sums.
            column_value: [G], likewise.

        Returns:
            [b, G]. What stands at the pairs does not count.
        """


def sum_terms(
    strip: Strip, rule: Rule, keep: bool, workspace_bytes: int
) -> tuple[Sums, Sums, Tensor]:
    """Sums a rule's terms along rows and along columns, pairs left out.

    Args:
        strip: what logits are made of.
        rule: gives the terms.
        keep: whether logits are stored for gradients.
        workspace_bytes: limit of the memory for a chunk's logits (64 rows at least are taken).

    Returns:
        Sums along rows [B] and along columns [G], and the logits [B, G] (shape [0] without keep).
    """
    x, acc = strip.x, strip.row_factor.dtype
    rows, columns = x.shape[0], strip.y.shape[0]
    of_rows = Sums(x.new_empty(rows, dtype=acc), x.new_empty(rows, dtype=acc))
    base = x.new_full((columns,), rule.nothing, dtype=acc)
    of_columns = Sums(base, x.new_zeros(columns, dtype=acc))
    kept = x.new_empty((rows, columns) if keep else (0,), dtype=acc)
    for begin, end in _chunks(rows, columns, acc, workspace_bytes):
        logits = _logits(strip, begin, end)
        if keep:
            kept[begin:end] = logits
        _mask_pairs(logits, begin + strip.first_column, float("-inf"))
        of_chunk, of_columns = rule.terms(logits, of_columns)
        of_rows.base[begin:end] = of_chunk.base
        of_rows.total[begin:end] = of_chunk.total
    return of_rows, of_columns, kept


def weighted_products(
    strip: Strip,
    rule: Rule,
    row_value: Tensor,
    column_value: Tensor,
    kept: Tensor,
    want_rows: bool,
    want_columns: bool,
    workspace_bytes: int,
) -> tuple[Tensor, Tensor]:
    """Q y and Q^T x with Q = P f g, P a rule's weights, pairs left out.

    Args:
        strip: what logits are made of.
        rule: gives the weights.
        row_value: [B], handed to the rule.
        column_value: [G], handed to the rule.
        kept: logits from `sum_terms`, or empty: they are formed again.
        want_rows, want_columns: which of the two products to run.
        workspace_bytes: as for `sum_terms`.

    Returns:
        Q y [B, D] and Q^T x [G, D] in the type of the factors (shape [0] where not wanted).
    """
    x, y, row_factor, column_factor = strip[:4]
    rows, columns, acc = x.shape[0], y.shape[0], row_factor.dtype
    row_grad = x.new_empty(x.shape if want_rows else (0,), dtype=acc)
    column_grad = x.new_zeros(y.shape if want_columns else (0,), dtype=acc)
    for begin, end in _chunks(rows, columns, acc, workspace_bytes):
        logits = kept[begin:end] if kept.numel() else _logits(strip, begin, end)
        weights = rule.weights(logits, row_value[begin:end], column_value)
        weights *= row_factor[begin:end, None] * column_factor
        _mask_pairs(weights, begin + strip.first_column, 0.0)
        if want_rows:
            row_grad[begin:end] = weights @ y.to(acc)
        if want_columns:
            column_grad.addmm_(weights.T, x[begin:end].to(acc))
    return row_grad, column_grad


def _logits(strip: Strip, begin: int, end: int) -> Tensor:
    """Logits of rows [begin, end), in the type of the factors."""
    x, y, row_factor, column_factor, scale, _ = strip
    acc = row_factor.dtype
    cosines = (x[begin:end].to(acc) @ y.to(acc).T) * row_factor[begin:end, None] * column_factor
    return cosines * scale


def _mask_pairs(matrix: Tensor, first_column: int, value: float) -> None:
    """Write `value` where row i meets its pair, column first_column + i."""
    row = torch.arange(matrix.shape[0], device=matrix.device)
    matrix[row, row + first_column] = value


def _chunks(
    rows: int, columns: int, dtype: torch.dtype, workspace_bytes: int
) -> Iterator[tuple[int, int]]:
    """Row ranges whose logits, and a few temporaries of their size, fit the workspace."""
    row_bytes = 4 * columns * torch.finfo(dtype).bits // 8
    step = min(rows, max(64, workspace_bytes // row_bytes))
    for begin in range(0, rows, step):
        yield begin, min(begin + step, rows)
