"""Attention pooling over a feature map: the mean token is the only query."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from clipfast.models.layers import Linear
from clipfast.models.positions import resize_grid
from clipfast.ops import attention_pool as ops
from clipfast.ops.products import linear


def attention_pool(
    x: Tensor,
    positional_embedding: Tensor,
    q_weight: Tensor,
    q_bias: Tensor,
    k_weight: Tensor,
    k_bias: Tensor,
    v_weight: Tensor,
    v_bias: Tensor,
    c_weight: Tensor,
    c_bias: Tensor | None,
    num_heads: int,
    impl: str = "auto",
) -> Tensor:
    """y = Wc [head_1 ... head_n] + bc over a feature map; `AttentionPool2d` with its parameters.

    Under autocast the feature map and the weights are cast to autocast's type; biases and
    positions stay as they are.

    Args:
        x: [B, C, H, W]; channels_last is read in place.
        positional_embedding: [H * W + 1, C], row 0 that of the mean token.
        q_weight, k_weight, v_weight: [C, C], the type of x.
        q_bias, k_bias, v_bias: [C].
        c_weight: [D, C].
        c_bias: [D] or None.
        num_heads: must divide C.
        impl: "auto", "plain" or "triton"; see clipfast/ops/attention_pool.

    Returns:
        [B, D], the type of the weights (autocast's under autocast).

    Raises:
        TypeError: x and the weights differ in type, outside autocast.
        ValueError: shapes do not fit.
    """
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
        x = x.to(dtype)
        q_weight, k_weight, v_weight = (w.to(dtype) for w in (q_weight, k_weight, v_weight))
    # A view of channels_last memory.
    tokens = x.flatten(2).transpose(1, 2)
    pooled = ops.attention_pool(
        tokens, positional_embedding, q_weight, q_bias, k_weight, k_bias, v_weight, v_bias,
        num_heads, impl,
    )  # fmt: skip
    return linear(pooled, c_weight, c_bias)


class AttentionPool2d(nn.Module):
    """Pool [B, C, H, W] to [B, D] with one multi-head attention query.

        t    = [mean(x), x_1 ... x_HW] + positional_embedding
        head = softmax((Wq t_0 + bq) (Wk t + bk)^T / sqrt(d)) (Wv t + bv)
        y    = Wc [head_1 ... head_n] + bc

    Equal to row 0 of `F.multi_head_attention_forward(t, t, t)`, without its other HW queries and
    without the keys and values: clipfast/ops/attention_pool moves both projections to the
    query's side. Takes the place of OpenAI's and OpenCLIP's module of this name.

    The projections' weights are read without calling the projections, so hooks on those do not
    run, and under ZeRO-3 this module must gather them all (a leaf module).

    Args:
        spacial_dim: side of the square feature map, H = W.
        embed_dim: channels C.
        num_heads: heads; must divide C.
        output_dim: width D; C if None.

    Raises:
        ValueError: if the heads do not divide the channels.

    Source: Radford et al. 2021, section 2.4.
    """

    def __init__(
        self, spacial_dim: int, embed_dim: int, num_heads: int, output_dim: int | None = None
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"num_heads={num_heads} must divide embed_dim={embed_dim}")
        self.spacial_dim = spacial_dim
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        std = embed_dim**-0.5
        self.positional_embedding = nn.Parameter(torch.empty(spacial_dim**2 + 1, embed_dim))
        self.k_proj = Linear(embed_dim, embed_dim, std=std)
        self.q_proj = Linear(embed_dim, embed_dim, std=std)
        self.v_proj = Linear(embed_dim, embed_dim, std=std)
        self.c_proj = Linear(embed_dim, output_dim or embed_dim, std=std)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the positions anew: N(0, 1/C). The projections reset themselves."""
        nn.init.normal_(self.positional_embedding, std=self.embed_dim**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Pool a batch of feature maps.

        Args:
            x: [B, C, H, W], fp32, bf16, fp16 or fp64; channels_last is read without a copy.

        Returns:
            [B, D], dtype of the projections (autocast's under autocast).

        Raises:
            TypeError: if x has another type than the projections, outside autocast.
            ValueError: if C, H or W differ from the constructor's.
        """
        expected = (self.embed_dim, self.spacial_dim, self.spacial_dim)
        if tuple(x.shape[1:]) != expected:
            raise ValueError(
                f"expected a feature map [B, {', '.join(map(str, expected))}], got "
                f"{list(x.shape)}: the positional embedding holds {self.spacial_dim**2} positions"
            )
        q, k, v, c = self.q_proj, self.k_proj, self.v_proj, self.c_proj
        return attention_pool(
            *(x, self.positional_embedding),
            *(q.weight, q.bias, k.weight, k.bias, v.weight, v.bias, c.weight, c.bias),
            self.num_heads,
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Interpolate positions of another square grid where load_state_dict brings such."""
        name = prefix + "positional_embedding"
        if isinstance(state_dict.get(name), Tensor):
            # Of the dictionary a copy is changed: another module may be loaded from it next.
            resized = resize_grid(state_dict[name], tuple(self.positional_embedding.shape))
            state_dict = {**state_dict, name: resized}
        super()._load_from_state_dict(state_dict, prefix, *args)
