"""The harness itself: a poison that does not show would let unwritten outputs pass."""

import pytest
import torch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_conftest_empty_is_nan(dtype):
    x = torch.zeros(3, dtype=dtype)
    for made in (torch.empty(5, dtype=dtype), torch.empty_like(x), x.new_empty(7)):
        assert made.isnan().all()


def test_conftest_poison_allows_scatter_and_index_put():
    x = torch.zeros(8)
    index = torch.tensor([1, 1, 3])
    x.index_put_((index,), torch.ones(3), accumulate=True)
    x.scatter_add_(0, index, torch.ones(3))
    assert x.tolist() == [0, 4, 0, 2, 0, 0, 0, 0]
