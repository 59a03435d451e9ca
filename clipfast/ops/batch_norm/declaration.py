"""What torch must know of batch norm. Beside plain torch it has one form: cpu, csrc/batch_norm."""

from __future__ import annotations

import torch
from torch import Tensor

from clipfast.ops.batch_norm import plain
from clipfast.ops.batch_norm.plain import FORMAT
from clipfast.ops.dtypes import accumulate_dtype
from clipfast.ops.registry import Compiled, Operator, declare


def _empty_rows(x: Tensor, stride: int = 1) -> Tensor:
    batch, channels, height, width = x.shape
    return torch.empty(
        (batch, channels, height // stride, width // stride),
        dtype=x.dtype,
        device=x.device,
        memory_format=FORMAT,
    )


def _empty_vector(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[1], dtype=accumulate_dtype(x.dtype))


def _fake_statistics(x: Tensor, eps: float):
    return _empty_vector(x), _empty_vector(x), _empty_vector(x)


def _fake_apply(x, mean, inv_std, weight, bias, residual, relu, want_y, want_pooled):
    nothing = x.new_empty(0)
    return _empty_rows(x) if want_y else nothing, _empty_rows(x, 2) if want_pooled else nothing


def _fake_backward(grad, other, x, y, mean, inv_std, weight, bias, relu, want_residual):
    residual = _empty_rows(x) if want_residual else x.new_empty(0)
    return _empty_rows(x), residual, _empty_vector(x), _empty_vector(x)


def _fake_gradient_sums(grad, other, x, y, mean, inv_std, weight, bias, relu, want_residual):
    residual = _empty_rows(x) if want_residual else x.new_empty(0)
    return residual, _empty_vector(x), _empty_vector(x)


def _fake_gradient_x(
    grad, other, x, y, mean, inv_std, weight, bias, relu, grad_weight, grad_bias, count
):
    return _empty_rows(x)


declare(
    Operator(
        name="batch_norm_statistics",
        schema="(Tensor x, float eps) -> (Tensor mean, Tensor inv_std, Tensor var)",
        plain=plain.statistics,
        fake=_fake_statistics,
        forms=(Compiled("cpu"),),
    )
)
apply_operator = declare(
    Operator(
        name="batch_norm_apply",
        schema=(
            "(Tensor x, Tensor mean, Tensor inv_std, Tensor weight, Tensor bias, Tensor? residual, "
            "bool relu, bool want_y, bool want_pooled) -> (Tensor y, Tensor pooled)"
        ),
        plain=plain.apply,
        fake=_fake_apply,
        forms=(Compiled("cpu"),),
    )
)
backward_operator = declare(
    Operator(
        name="batch_norm_backward",
        schema=(
            "(Tensor? grad, Tensor? other, Tensor x, Tensor? y, Tensor mean, Tensor inv_std, "
            "Tensor weight, Tensor bias, bool relu, bool want_residual) -> (Tensor grad_x, "
            "Tensor grad_residual, Tensor grad_weight, Tensor grad_bias)"
        ),
        plain=plain.backward,
        fake=_fake_backward,
        forms=(Compiled("cpu"),),
    )
)
# The two halves of the backward pass, for statistics that the rows of other tensors share.
gradient_sums_operator = declare(
    Operator(
        name="batch_norm_gradient_sums",
        schema=(
            "(Tensor? grad, Tensor? other, Tensor x, Tensor? y, Tensor mean, Tensor inv_std, "
            "Tensor weight, Tensor bias, bool relu, bool want_residual) -> (Tensor grad_residual, "
            "Tensor grad_weight, Tensor grad_bias)"
        ),
        plain=plain.gradient_sums,
        fake=_fake_gradient_sums,
        forms=(Compiled("cpu"),),
    )
)
gradient_x_operator = declare(
    Operator(
        name="batch_norm_gradient_x",
        schema=(
            "(Tensor? grad, Tensor? other, Tensor x, Tensor? y, Tensor mean, Tensor inv_std, "
            "Tensor weight, Tensor bias, bool relu, Tensor grad_weight, Tensor grad_bias, "
            "int count) -> Tensor"
        ),
        plain=plain.gradient_x,
        fake=_fake_gradient_x,
        forms=(Compiled("cpu"),),
    )
)
