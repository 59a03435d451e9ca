"""Batch norm over parts of a batch: against fp64, part by part, compiled and plain."""

from __future__ import annotations

import itertools
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from clipfast.ops.batch_norm import Sharing, Tail, plain, shared_batch_norm, shared_statistics
from clipfast.ops.batch_norm import shared as module
from tests.needs import need
from tests.ops.test_batch_norm import DTYPES, EPS, TAILS, make, needs_extension, run, truth

SHAPES = [(6, 7, 4, 2), (4, 64, 8, 6), (6, 80, 2, 2)]
OPERATORS = ("apply_operator", "gradient_sums_operator", "gradient_x_operator")


def shared(groups: int):
    def function(x, weight, bias, residual, tail):
        sharing = Sharing(groups)
        mean, inv_std, _, count = shared_statistics(x.detach(), EPS, sharing)
        assert count == x.numel() // x.shape[1] // groups
        return shared_batch_norm(x, mean, inv_std, weight, bias, residual, tail, sharing)

    return function


def part_by_part(groups: int):
    def function(x, weight, bias, residual, tail):
        rests = [None] * groups if residual is None else residual.chunk(groups)
        parts = [
            truth(part, weight, bias, rest, tail)
            for part, rest in zip(x.chunk(groups), rests, strict=True)
        ]
        if isinstance(parts[0], Tensor):
            return torch.cat(parts)
        return tuple(torch.cat(each) for each in zip(*parts, strict=True))

    return function


@pytest.fixture(params=["compiled", "plain"])
def form(request):
    """The operators as they are called, or their plain forms in their places."""
    if request.param == "compiled":
        need("extension")
        yield
        return
    forms = (plain.apply, plain.gradient_sums, plain.gradient_x)
    with patch.multiple(module, **dict(zip(OPERATORS, forms, strict=True))):
        yield


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("has_residual", "tail"), TAILS)
def test_shared_batch_norm_is_that_of_each_part(form, has_residual, tail, groups):
    for shape in SHAPES:
        case = make(shape, has_residual=has_residual, tail=tail)
        ours, theirs = run(shared(groups), case), run(part_by_part(groups), case)
        for got, want in zip(ours, theirs, strict=True):
            assert (got is None) == (want is None)
            if got is not None:
                torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)


@needs_extension
@pytest.mark.parametrize("dtype", DTYPES)
def test_shared_batch_norm_of_one_part_has_the_bits_of_batch_norm(dtype):
    from tests.ops.test_batch_norm import fused

    for (has_residual, tail), shape in itertools.product(TAILS, SHAPES):
        case = make(shape, dtype, has_residual, tail)
        for got, want in zip(run(shared(1), case), run(fused, case), strict=True):
            if want is not None and want.dim() > 1 and want.shape == case.x.shape:
                # The coefficients of grad_x are rounded once more on their way.
                error = (got.double() - want.double()).abs().max()
                assert error <= 4 * torch.finfo(dtype).eps * want.double().abs().max()
            elif want is not None:
                assert torch.equal(got, want)


def test_shared_statistics_refuse_what_has_none():
    x = torch.randn(4, 3, 1, 1)
    with pytest.raises(ValueError, match="4 does not divide into 3 groups"):
        shared_statistics(x, EPS, Sharing(3))
    with pytest.raises(ValueError, match="more than one value per channel"):
        shared_statistics(x, EPS, Sharing(4))


def test_shared_batch_norm_needs_the_whole_gradient():
    """The checks above can fail: sums of one part alone give another gradient."""
    case = make((4, 7, 4, 2))
    one, two = run(shared(1), case), run(shared(2), case)
    assert (one[1] - two[1]).abs().max() > 1e-3
    assert Tail() == case.tail
