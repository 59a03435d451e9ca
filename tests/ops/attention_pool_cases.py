"""Inputs and error measures of the tests of attention pooling."""

from __future__ import annotations

import torch

NAMES = ("x", "positions", "q_weight", "q_bias", "k_weight", "k_bias", "v_weight", "v_bias")


def make_inputs(batch, tokens, channels, dtype, *, seed=0, spread=1.0, device="cpu"):
    """Arguments by name. Tokens are rectified, as the tower's are: their mean is far from 0."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape, size=1.0):
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * size

    shapes = {"x": (batch, tokens, channels), "positions": (tokens + 1, channels)}
    values = {"x": draw(*shapes["x"]).relu(), "positions": draw(*shapes["positions"], size=0.3)}
    for letter in "qkv":
        size = channels**-0.5 * (spread if letter == "k" else 1.0)
        values[f"{letter}_weight"] = draw(channels, channels, size=size)
        values[f"{letter}_bias"] = draw(channels, size=0.1)
    return {name: values[name].to(device, dtype).requires_grad_() for name in NAMES}


def value_and_grads(function, inputs, num_heads, **options):
    """The output and every gradient by name, for a fixed random gradient of the output."""
    out = function(*inputs.values(), num_heads, **options)
    generator = torch.Generator().manual_seed(7)
    grad = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    grads = torch.autograd.grad(out, list(inputs.values()), grad.to(out.device, out.dtype))
    return {"out": out.detach(), **dict(zip(inputs, grads, strict=True))}


def relative_errors(got, want):
    """Root of the mean squared error over that of the truth; not of the key bias, where it is 0."""
    errors = {}
    for name, truth in want.items():
        if name != "k_bias":
            assert got[name].shape == truth.shape
            difference = got[name].double() - truth.double()
            errors[name] = float(difference.norm() / truth.double().norm())
    return errors


def errors_against_fp64(function, inputs, num_heads, **options):
    """Errors of a function against the usual form in fp64 on the same, already rounded, inputs."""
    from clipfast.ops.attention_pool import reference

    wide = {name: tensor.detach().double().requires_grad_() for name, tensor in inputs.items()}
    # The rounded gradient of the output is part of the inputs.
    out = function(*inputs.values(), num_heads, **options)
    generator = torch.Generator().manual_seed(7)
    grad = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    grad = grad.to(out.device, out.dtype)
    results = []
    for values, result in ((inputs, out), (wide, reference(*wide.values(), num_heads))):
        grads = torch.autograd.grad(result, list(values.values()), grad.to(result.dtype))
        results.append({"out": result.detach(), **dict(zip(values, grads, strict=True))})
    return relative_errors(*results)
