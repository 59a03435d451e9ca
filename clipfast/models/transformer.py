"""The pre-norm transformer of both towers.

Legend: B batch, L tokens, C width, H heads, d = C / H.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipfast.models.layers import Linear, QuickGELU, run_block


@dataclass(frozen=True)
class BlockInit:
    """Standard deviations of a block's weights; None leaves PyTorch's default for that weight.

    Args:
        attn: query, key and value projection (default: Xavier uniform).
        proj: both projections that write into the residual stream (default: uniform).
        fc: the first matrix of the MLP (default: uniform).
    """

    attn: float | None = None
    proj: float | None = None
    fc: float | None = None

    @classmethod
    def scaled(cls, width: int, layers: int) -> BlockInit:
        """The text tower's: what writes into the residual stream shrinks with the depth.

        attn = C^-0.5, proj = C^-0.5 (2 layers)^-0.5, fc = (2 C)^-0.5.

        Args:
            width: channels C.
            layers: blocks that share the stream.

        Returns:
            The three deviations.
        """
        return cls(
            attn=width**-0.5, proj=width**-0.5 * (2 * layers) ** -0.5, fc=(2 * width) ** -0.5
        )


class SelfAttention(nn.Module):
    """y = Wo concat_h softmax(q_h k_h^T / sqrt(d)) v_h + bo, with [q, k, v] = x W_in^T + b_in.

    Parameter names and shapes are those of `torch.nn.MultiheadAttention`.

    Args:
        width: channels C.
        heads: heads H; must divide C.
        init: starting deviations.
    """

    def __init__(self, width: int, heads: int, init: BlockInit) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_std = init.attn
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = Linear(width, width, std=init.proj, zero_bias=True)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the joint projection anew, its bias 0. The output projection resets itself."""
        if self.in_proj_std is None:
            nn.init.xavier_uniform_(self.in_proj_weight)
        else:
            nn.init.normal_(self.in_proj_weight, std=self.in_proj_std)
        nn.init.zeros_(self.in_proj_bias)

    def forward(self, x: Tensor, is_causal: bool) -> Tensor:
        """Attend.

        Args:
            x: [B, L, C].
            is_causal: token i sees tokens 0 ... i only.

        Returns:
            [B, L, C].
        """
        batch, length, width = x.shape
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=is_causal)
        return self.out_proj(out.transpose(1, 2).reshape(batch, length, width))


class ResidualAttentionBlock(nn.Module):
    """x + attn(ln_1(x)), then x + mlp(ln_2(x)), the MLP four times as wide, with QuickGELU.

    Args:
        width: channels C.
        heads: heads H.
        init: starting deviations.
    """

    def __init__(self, width: int, heads: int, init: BlockInit) -> None:
        super().__init__()
        self.attn = SelfAttention(width, heads, init)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            OrderedDict(
                c_fc=Linear(width, 4 * width, std=init.fc),
                gelu=QuickGELU(),
                c_proj=Linear(4 * width, width, std=init.proj),
            )
        )
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, is_causal: bool) -> Tensor:
        """Run the block.

        Args:
            x: [B, L, C].
            is_causal: token i sees tokens 0 ... i only.

        Returns:
            [B, L, C].
        """
        x = x + self.attn(self.ln_1(x), is_causal)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """A stack of residual attention blocks.

    Args:
        width: channels C.
        layers: blocks.
        heads: heads H.
        is_causal: token i sees tokens 0 ... i only.
        init: starting deviations.
        gradient_checkpointing: recompute each block in the backward pass.
    """

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        *,
        is_causal: bool,
        init: BlockInit,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.is_causal = is_causal
        self.gradient_checkpointing = gradient_checkpointing
        self.resblocks = nn.Sequential(
            *(ResidualAttentionBlock(width, heads, init) for _ in range(layers))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Run all blocks.

        Args:
            x: [B, L, C].

        Returns:
            [B, L, C].
        """
        for block in self.resblocks:
            x = run_block(block, x, self.gradient_checkpointing, is_causal=self.is_causal)
        return x
