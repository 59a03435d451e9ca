"""The towers as the paper writes them: every token of every position, nothing left out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipfast.models import CLIP


def plain_block(block: nn.Module, x: Tensor, is_causal: bool) -> Tensor:
    """x [B, L, C] -> [B, L, C], with a mask of -inf and an explicit softmax."""
    batch, length, width = x.shape
    attn = block.attn
    qkv = F.linear(block.ln_1(x), attn.in_proj_weight, attn.in_proj_bias)
    q, k, v = qkv.view(batch, length, 3, attn.heads, -1).permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(-1, -2) / (width // attn.heads) ** 0.5
    if is_causal:
        future = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        scores = scores.masked_fill(future, float("-inf"))
    mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, width)
    x = x + F.linear(mixed, attn.out_proj.weight, attn.out_proj.bias)
    hidden = F.linear(block.ln_2(x), block.mlp.c_fc.weight, block.mlp.c_fc.bias)
    hidden = hidden * torch.sigmoid(1.702 * hidden)
    return x + F.linear(hidden, block.mlp.c_proj.weight, block.mlp.c_proj.bias)


def plain_encode_text(model: CLIP, tokens: Tensor) -> Tensor:
    """Text features [B, D] from all L positions."""
    x = model.token_embedding.weight[tokens] + model.positional_embedding[: tokens.shape[1]]
    for block in model.transformer.resblocks:
        x = plain_block(block, x, is_causal=True)
    x = model.ln_final(x)[torch.arange(len(x), device=x.device), tokens.argmax(-1)]
    return x @ model.text_projection


def plain_encode_image(model: CLIP, images: Tensor) -> Tensor:
    """Image features [B, D] of a vision transformer from all tokens of every block."""
    visual = model.visual
    x = F.conv2d(images, visual.conv1.weight, stride=visual.conv1.stride)
    x = x.flatten(2).transpose(1, 2)
    cls = visual.class_embedding.expand(len(x), 1, -1)
    x = visual.ln_pre(torch.cat([cls, x], dim=1) + visual.positional_embedding)
    for block in visual.transformer.resblocks:
        x = plain_block(block, x, is_causal=False)
    return visual.ln_post(x)[:, 0] @ visual.proj


def gradients_of(model: CLIP, features: Tensor, cotangent: Tensor) -> dict[str, Tensor]:
    """Gradients of <features, cotangent> by name, of the parameters that have one."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    grads = torch.autograd.grad(features, parameters, cotangent, allow_unused=True)
    return {name: g for name, g in zip(names, grads, strict=True) if g is not None}


def assert_errs_no_more_than_plain(
    model: CLIP,
    exact_model: CLIP,
    encode: Callable[[Tensor], Tensor],
    plain: Callable[[CLIP, Tensor], Tensor],
    inputs: Tensor,
) -> None:
    """Features and gradients of a low-precision tower are at most twice as far from fp64 as those
    of the plain tower in the same precision.

    Args:
        model: in low precision.
        exact_model: in fp64, takes over the weights of `model`.
        encode: the tower of `model` under test.
        plain: the plain tower of any model.
        inputs: images in the type of `model`, or tokens.
    """
    torch.backends.cuda.matmul.allow_tf32 = False
    exact_model.load_state_dict(model.state_dict())
    exact = plain(exact_model, inputs.double() if inputs.is_floating_point() else inputs)
    cotangent = torch.randn_like(exact)
    wanted = gradients_of(exact_model, exact, cotangent)
    errors = []
    for tower in (encode, lambda x: plain(model, x)):
        features = tower(inputs)
        grads = gradients_of(model, features, cotangent.to(features.dtype))
        error = {n: (grads[n].double() - g).norm().item() for n, g in wanted.items()}
        errors.append({"features": (features.double() - exact).norm().item(), **error})
    for name, error in errors[0].items():
        assert error <= 2 * errors[1][name] + 1e-6 * exact.norm().item(), name
