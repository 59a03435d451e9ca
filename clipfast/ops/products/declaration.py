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
    grad: Tensor, x: Tensor | None, weight: Tensor | None, by_columns: bool, want_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    none, columns = grad.new_empty(0), grad.shape[-1]
    grad_x = grad_weight = none
    if weight is not None:
        grad_x = grad.new_empty(*grad.shape[:-1], weight.shape[1])
    if x is not None:
        inner = x.shape[-1]
        grad_weight = (
            grad.new_empty(inner, columns).t() if by_columns else grad.new_empty(columns, inner)
        )
    # No two results are one tensor.
    return (
        grad_x,
        grad_weight.clone() if grad_weight is none else grad_weight,
        grad.new_empty(columns if want_bias else 0),
    )


def _fake_bmm(a: Tensor, b: Tensor) -> Tensor:
    return a.new_empty(a.shape[0], a.shape[1], b.shape[2])


def _keep_linear(ctx, inputs, output) -> None:
    x, weight, _ = inputs
    wants_x, wants_weight, *_ = ctx.needs_input_grad
    ctx.save_for_backward(x if wants_weight else None, weight if wants_x else None)
    ctx.by_columns = weight.stride(0) == 1 and weight.stride(1) != 1


def _linear_gradient(ctx, grad: Tensor):
    x, weight = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    results = torch.ops.clipfast.linear_backward(grad, x, weight, ctx.by_columns, wanted[2])
    return tuple(value if want else None for value, want in zip(results, wanted, strict=True))


def _keep_linear_backward(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:3])


def _second_derivative(
    ctx, for_x: Tensor | None, for_weight: Tensor | None, for_bias: Tensor | None
):
    """Of dx = g W, dW = g^T x, db = sum g: each is linear in both of its arguments."""
    grad, x, weight = ctx.saved_tensors
    grad_rows = grad.flatten(0, -2) if grad.dim() > 1 else grad[None]
    of_grad, of_x, of_weight = torch.zeros_like(grad_rows), None, None
    if weight is not None and for_x is not None:
        for_x = for_x.reshape(-1, weight.shape[1])
        of_grad = of_grad + for_x @ weight.mT
        of_weight = grad_rows.mT @ for_x
    if x is not None and for_weight is not None:
        of_grad = of_grad + x.reshape(-1, x.shape[-1]) @ for_weight.mT
        of_x = (grad_rows @ for_weight).view(x.shape)
    if for_bias is not None and for_bias.numel():
        of_grad = of_grad + for_bias
    return of_grad.view(grad.shape), of_x, of_weight, None, None


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
        schema="(Tensor grad, Tensor? x, Tensor? weight, bool by_columns, bool want_bias) -> "
        "(Tensor grad_x, Tensor grad_weight, Tensor grad_bias)",
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
