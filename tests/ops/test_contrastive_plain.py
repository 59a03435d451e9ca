"""The walk of the contrastive operators in plain torch: the softmax, and a rule from outside."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from clipfast.ops.contrastive.plain_softmax_rule import SoftmaxRule
from clipfast.ops.contrastive.plain_walk import Strip, Sums, sum_terms, weighted_products

BIAS = -1.5
# Rows, columns, width, first column. Chunks of 64 rows: the last shapes take several.
SHAPES = [(1, 1, 7, 0), (5, 12, 3, 3), (123, 252, 20, 100), (200, 300, 11, 0)]
LEAST = 1  # byte of workspace: the smallest chunks


class SigmoidRule:
    """softplus(S + b) along rows, sigmoid(S + b), its derivative, along columns."""

    nothing = 0.0

    def terms(self, logits, columns):
        z = logits + BIAS
        row_sum = F.softplus(z).sum(dim=1)
        of_columns = Sums(columns.base, columns.total + torch.sigmoid(z).sum(dim=0))
        return Sums(torch.zeros_like(row_sum), row_sum), of_columns

    def weights(self, logits, row_value, column_value):
        return row_value[:, None] * torch.sigmoid(logits + BIAS)


def make_strip(rows, columns, width, first_column, dtype):
    x, y = torch.randn(rows, width, dtype=dtype), torch.randn(columns, width, dtype=dtype)
    factors = (torch.rand(rows, dtype=dtype) + 0.5, torch.rand(columns, dtype=dtype) + 0.5)
    return Strip(x, y, *factors, torch.tensor([0.7], dtype=dtype), first_column)


def reference_logits(strip):
    """S in fp64, and whether a logit counts."""
    x, y, f, g, scale = (t.double() for t in strip[:5])
    counts = torch.ones(x.shape[0], y.shape[0], dtype=torch.bool)
    row = torch.arange(x.shape[0])
    counts[row, row + strip.first_column] = False
    return scale * (x * f[:, None]) @ (y * g[:, None]).T, counts


def check_products(strip, rule, row_value, column_value, kept, weights, limit):
    """Q y and Q^T x against their definition in fp64."""
    x, y, f, g = (t.double() for t in strip[:4])
    q = weights * f[:, None] * g
    values = (row_value, column_value, kept)
    got = weighted_products(strip, rule, *values, True, True, LEAST)
    for product, exact in zip(got, (q @ y, q.T @ x), strict=True):
        torch.testing.assert_close(product.double(), exact, rtol=limit, atol=limit)
    row_grad, nothing = weighted_products(strip, rule, *values, True, False, LEAST)
    assert torch.equal(row_grad, got[0])
    assert nothing.shape == (0,)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 3e-5), (torch.float64, 1e-12)])
def test_plain_walk_with_a_rule_from_outside_equals_its_reference(shape, keep, dtype, limit):
    strip = make_strip(*shape, dtype)
    logits, counts = reference_logits(strip)
    of_rows, of_columns, kept = sum_terms(strip, SigmoidRule(), keep, LEAST)
    sigmoid = torch.sigmoid(logits + BIAS) * counts
    softplus = F.softplus(logits + BIAS) * counts
    close = {"rtol": limit, "atol": limit}
    torch.testing.assert_close(of_rows.total.double(), softplus.sum(1), **close)
    torch.testing.assert_close(of_columns.total.double(), sigmoid.sum(0), **close)
    assert not of_rows.base.any()
    assert not of_columns.base.any()
    row_value = torch.rand(shape[0], dtype=dtype)
    weights = row_value.double()[:, None] * sigmoid
    unused = torch.full((shape[1],), float("nan"), dtype=dtype)
    check_products(strip, SigmoidRule(), row_value, unused, kept, weights, limit)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 3e-5), (torch.float64, 1e-12)])
def test_plain_walk_with_the_softmax_equals_its_reference(shape, keep, dtype, limit):
    strip = make_strip(*shape, dtype)
    logits, counts = reference_logits(strip)
    of_rows, of_columns, kept = sum_terms(strip, SoftmaxRule(), keep, LEAST)
    without_pairs = logits.masked_fill(~counts, float("-inf"))
    close = {"rtol": limit, "atol": limit}
    for sums, dim in ((of_rows, 1), (of_columns, 0)):
        lse = sums.base.double() + sums.total.double().log()
        torch.testing.assert_close(lse, without_pairs.logsumexp(dim), **close)
    row_lse, column_lse = logits.logsumexp(1), logits.logsumexp(0)
    weights = ((logits - row_lse[:, None]).exp() + (logits - column_lse).exp()) * counts
    values = (row_lse.to(dtype), column_lse.to(dtype))
    check_products(strip, SoftmaxRule(), *values, kept, weights, limit)
