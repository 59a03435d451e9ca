"""The bound of the logit scale, the schedule."""

import math

import pytest
import torch

from clipfast.optim import FusedAdamW, warmup_cosine
from clipfast.optim.groups import LOGIT_SCALE_MAXIMUM


def test_adamw_keeps_the_maximum_and_otherwise_equals_torch():
    bounded = torch.nn.Parameter(torch.tensor([math.log(99.9)]))
    free, twin = (torch.nn.Parameter(torch.ones(5)) for _ in range(2))
    ours = FusedAdamW(
        [{"params": [free]}, {"params": [bounded], "maximum": LOGIT_SCALE_MAXIMUM}],
        lr=0.1,
        stats_dtype=torch.float32,
    )
    theirs = torch.optim.AdamW([twin], lr=0.1)
    for step in range(5):
        bounded.grad = torch.tensor([-1.0])
        free.grad = twin.grad = torch.arange(5.0) - step
        ours.step()
        theirs.step()
        assert bounded.exp().item() <= 100.0
    assert bounded.exp().item() == pytest.approx(100.0, rel=1e-6)
    torch.testing.assert_close(free, twin, rtol=1e-6, atol=1e-7)


def test_warmup_cosine_rises_peaks_and_ends_at_zero():
    rates = [warmup_cosine(t, 2.0, 10, 110) for t in range(111)]
    assert rates[:10] == pytest.approx([0.2 * (t + 1) for t in range(10)])
    assert max(rates) == rates[10] == 2.0
    assert rates[60] == pytest.approx(1.0)
    assert rates[110] == pytest.approx(0.0, abs=1e-12)
    assert warmup_cosine(0, 2.0, 0, 10) == 2.0
    assert warmup_cosine(500, 2.0, 10, 110) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weights", ["fp32", "stochastic", "grid"])
def test_maximum_holds_for_the_half_values_that_are_computed_with(dtype, weights):
    is_grid = weights == "grid"
    param = torch.nn.Parameter(torch.full((4096,), 4.5, dtype=torch.float32 if is_grid else dtype))
    maximum = LOGIT_SCALE_MAXIMUM
    optimizer = FusedAdamW(
        [{"params": [param], "maximum": maximum}],
        lr=0.02,
        weight_decay=0.0,
        weights="stochastic" if is_grid else weights,
        weights_dtype=dtype if is_grid else None,
    )
    for _ in range(30):
        param.grad = -torch.ones_like(param)
        optimizer.step()
    assert param.double().max() <= maximum
    assert param.double().min() > maximum - 2.0**-4
    assert optimizer.full_precision(param).double().max() <= maximum


def test_backward_over_weights_that_a_step_has_changed_is_refused():
    x, w = (torch.ones(3, 3, requires_grad=True) for _ in range(2))
    loss = (x @ w).sum()
    loss.backward(retain_graph=True)
    FusedAdamW([w]).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
