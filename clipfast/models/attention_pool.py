"""Attention pooling over a feature map: the mean token is the only query."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipfast.models.layers import Linear


class AttentionPool2d(nn.Module):
    """Pool [B, C, H, W] to [B, D] with one multi-head attention query.

        t    = [mean(x), x_1 ... x_HW] + positional_embedding
        head = softmax((Wq t_0 + bq) (Wk t + bk)^T / sqrt(d)) (Wv t + bv)
        y    = Wc [head_1 ... head_n] + bc

    Equal to row 0 of `F.multi_head_attention_forward(t, t, t)`, without the queries, scores and
    outputs of the other HW rows.

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
            x: [B, C, H, W], fp32, bf16 or fp16; channels_last is read without a copy.

        Returns:
            [B, D], dtype of the projections.

        Raises:
            ValueError: if C, H or W differ from the constructor's.
        """
        expected = (self.embed_dim, self.spacial_dim, self.spacial_dim)
        if tuple(x.shape[1:]) != expected:
            raise ValueError(
                f"expected a feature map [B, {', '.join(map(str, expected))}], got "
                f"{list(x.shape)}: the positional embedding holds {self.spacial_dim**2} positions"
            )
        batch, heads = x.shape[0], self.num_heads
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)
        x = x + self.positional_embedding.to(x.dtype)
        q = self.q_proj(x[:, :1]).view(batch, 1, heads, -1).transpose(1, 2)
        k = self.k_proj(x).view(batch, x.shape[1], heads, -1).transpose(1, 2)
        v = self.v_proj(x).view(batch, x.shape[1], heads, -1).transpose(1, 2)
        pooled = F.scaled_dot_product_attention(q, k, v)
        return self.c_proj(pooled.reshape(batch, self.embed_dim))
