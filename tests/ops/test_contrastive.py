"""The contrastive operators as torch sees them (opcheck), and the products that they take.

What they compute is in test_contrastive_forms.py.
"""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from clipfast.ops import contrastive
from clipfast.ops.contrastive import operators, plain
from tests.ops.contrastive_cases import log_sums, make_strip

HERE = [name for name in contrastive.available_impls("cpu") if name != "triton"]
WORKSPACE = 1 << 20


@pytest.mark.parametrize("impl", HERE)
def test_contrastive_operators_pass_opcheck(impl):
    ops = operators(impl)
    strip = make_strip(6, 10, 8, torch.float32)
    *sums, shift, kept = ops.statistics(*strip, 2, True, WORKSPACE)
    vectors = [log_sums(*sums[:2]).float(), log_sums(*sums[2:]).float()]
    x, y = strip[0], strip[1][:6].contiguous()
    factors = [strip[2], strip[3][:6].contiguous()]
    diagonal, coefficient = torch.randn(6), torch.tensor([0.5])
    calls = [
        (ops.prepare, (x, True, torch.float32)),
        (ops.prepare, (x, False, None)),
        (ops.diagonal, (x, y, *factors)),
        (ops.statistics, (*strip, 2, False, WORKSPACE)),
        (ops.statistics, (*strip, 2, True, WORKSPACE)),
        (ops.gradients, (*strip, shift, *vectors, kept, 2, True, False, WORKSPACE)),
        (ops.finish, (torch.randn(6, 8), x, y, *factors, factors[0], diagonal, coefficient, True)),
    ]
    for operator, arguments in calls:
        utils = ["test_schema", "test_autograd_registration", "test_faketensor"]
        # Compares with ==, which the NaN of a shift that is not used fails.
        if not (operator is ops.statistics and shift.isnan()):
            utils.append("test_aot_dispatch_dynamic")
        torch.library.opcheck(operator, arguments, test_utils=utils)


class CountProducts(TorchDispatchMode):
    """FLOP of matrix products, those in place included."""

    flop = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            left, right = arguments[-2:]
        elif function.overloadpacket is torch.ops.aten.addmm_:
            left, right = arguments[1:3]
        else:
            return function(*arguments, **(options or {}))
        self.flop += 2 * left.shape[0] * left.shape[1] * right.shape[1]
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize(("keep", "products"), [(True, 3), (False, 4)])
def test_strip_takes_six_or_eight_flop_a_logit_and_width(keep, products):
    rows, columns, width = 40, 70, 16
    strip = make_strip(rows, columns, width, torch.float32)
    with CountProducts() as counter:
        *sums, shift, kept = plain.statistics(*strip, 3, keep, WORKSPACE)
        vectors = [log_sums(*sums[:2]).float(), log_sums(*sums[2:]).float()]
        plain.gradients(*strip, shift, *vectors, kept, 3, True, True, WORKSPACE)
    assert counter.flop == products * 2 * rows * columns * width
