"""What torch must know of linear and bmm. Beside plain torch they have this form:

cpu      csrc/products (oneDNN's block product, or MKL through torch: library.py chooses)
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipfast.ops.products import plain
from clipfast.ops.registry import Compiled, Gradient, Operator, declare


def _fake_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _fake_linear_backward(
    grad: Tensor, x: Tensor, weight: Tensor, want_x: bool, want_weight: bool, want_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape if want_x else 0),
        torch.empty_like(weight) if want_weight else x.new_empty(0),
        x.new_empty(weight.shape[0] if want_bias else 0),
    )


def _fake_bmm(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], a.shape[1], b.shape[2])


def _keep_linear(ctx, inputs, output) -> None:
    x, weight, bias = inputs
    ctx.save_for_backward(x, weight)
    ctx.wants_bias = bias is not None


def _linear_gradient(ctx, grad: Tensor):
    x, weight = ctx.saved_tensors
    wants_x, wants_weight, wants_bias = ctx.needs_input_grad
    wanted = (wants_x, wants_weight, wants_bias and ctx.wants_bias)
    grads = torch.ops.clipfast.linear_backward(grad, x, weight, *wanted)
    return tuple(value if want else None for value, want in zip(grads, wanted, strict=True))


def _keep_linear_backward(ctx, inputs, output) -> None:
    grad, x, weight, *_ = inputs
    ctx.save_for_backward(grad, x, weight)


def _second_derivative(ctx, for_x: Tensor | None, for_weight: Tensor | None, for_bias):
    """Of dx = g W, dW = g^T x, db = sum g: each is linear in both of its arguments."""
    grad, x, weight = ctx.saved_tensors
    rows, grad_rows = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
    of_grad, of_x, of_weight = torch.zeros_like(grad_rows), None, None
    if for_x is not None and for_x.numel():
        for_x = for_x.reshape(rows.shape)
        of_grad = of_grad + for_x @ weight.mT
        of_weight = grad_rows.mT @ for_x
    if for_weight is not None and for_weight.numel():
        of_grad = of_grad + rows @ for_weight.mT
        of_x = (grad_rows @ for_weight).view(x.shape)
    if for_bias is not None and for_bias.numel():
        of_grad = of_grad + for_bias
    return of_grad.view(grad.shape), of_x, of_weight, None, None, None


def _keep_bmm(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _bmm_gradient(ctx, grad: Tensor):
    a, b = ctx.saved_tensors
    wants_a, wants_b = ctx.needs_input_grad
    product = torch.ops.clipfast.bmm
    return (
        product(grad, b.mT) if wants_a else None,
        product(a.mT, grad) if wants_b else None,
    )


linear_operator = declare(
    Operator(
        name="linear",
        schema="(Tensor x, Tensor weight, Tensor? bias) -> Tensor y",
        plain=plain.linear,
        fake=_fake_linear,
        gradient=Gradient(_linear_gradient, _keep_linear),
        forms=(Compiled("cpu"),),
    )
)
declare(
    Operator(
        name="linear_backward",
        schema="(Tensor grad, Tensor x, Tensor weight, bool want_x, bool want_weight, "
        "bool want_bias) -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)",
        plain=plain.linear_backward,
        fake=_fake_linear_backward,
        gradient=Gradient(_second_derivative, _keep_linear_backward),
        forms=(Compiled("cpu"),),
    )
)
bmm_out_operator = declare(
    Operator(
        name="bmm_out",
        schema="(Tensor a, Tensor b, Tensor(out!) out) -> ()",
        plain=plain.bmm_out,
        fake=lambda a, b, out: None,
        forms=(Compiled("cpu"),),
    )
)
bmm_operator = declare(
    Operator(
        name="bmm",
        schema="(Tensor a, Tensor b) -> Tensor c",
        plain=plain.bmm,
        fake=_fake_bmm,
        gradient=Gradient(_bmm_gradient, _keep_bmm),
        forms=(Compiled("cpu"),),
    )
)
