"""The pre-norm transformer of both towers, on tokens that lie end to end.

Legend: B sequences, T tokens of all of them, C width, H heads, d = C / H.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clipfast.models.layers import Activation, Linear, QuickGELU, activation_layer
from clipfast.models.recompute import run_block
from clipfast.models.sequences import SequenceLayout
from clipfast.ops.products import linear


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

    def forward(self, x: Tensor, layout: SequenceLayout, read: bool = False) -> Tensor:
        """Attend.

        Args:
            x: [T, C].
            layout: where each sequence lies.
            read: return the rows that are read, computing no other query.

        Returns:
            [T, C], or [B, C] with `read`.
        """
        if not read:
            qkv = linear(x, self.in_proj_weight, self.in_proj_bias)
            return self.out_proj(layout.attend(qkv, self.heads))
        sizes = (x.shape[1], 2 * x.shape[1])
        q_weight, kv_weight = self.in_proj_weight.split(sizes)
        q_bias, kv_bias = self.in_proj_bias.split(sizes)
        q = linear(layout.read(x), q_weight, q_bias)
        kv = linear(x, kv_weight, kv_bias)
        return self.out_proj(layout.attend_read(q, kv, self.heads))


class ResidualAttentionBlock(nn.Module):
    """x + attn(ln_1(x)), then x + mlp(ln_2(x)), the MLP four times as wide, with QuickGELU.

    `use_activation` gives it another activation.

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

    def forward(self, x: Tensor, layout: SequenceLayout, read: bool = False) -> Tensor:
        """Run the block.

        Args:
            x: [T, C].
            layout: where each sequence lies.
            read: return the rows that are read alone: keys and values come from all tokens, the
                query, the projection and the MLP from those rows.

        Returns:
            [T, C], or [B, C] with `read`.
        """
        attended = self.attn(self.ln_1(x), layout, read)
        x = (layout.read(x) if read else x) + attended
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """A stack of residual attention blocks, of whose output one token a sequence is read.

    Args:
        width: channels C.
        layers: blocks.
        heads: heads H.
        init: starting deviations.
        recompute: what each block keeps for the backward pass, see `run_block`.
    """

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        *,
        init: BlockInit,
        recompute: str = "none",
    ) -> None:
        super().__init__()
        self.recompute = recompute
        self.resblocks = nn.Sequential(
            *(ResidualAttentionBlock(width, heads, init) for _ in range(layers))
        )

    def forward(self, x: Tensor, layout: SequenceLayout) -> Tensor:
        """Run all blocks.

        Args:
            x: [T, C].
            layout: where each sequence lies.

        Returns:
            [B, C], the tokens that are read, in the order of `layout`.
        """
        last = len(self.resblocks) - 1
        for i, block in enumerate(self.resblocks):
            x = run_block(block, x, self.recompute, layout=layout, read=i == last)
        return x


def use_activation(model: nn.Module, name: Activation) -> None:
    """Give every residual attention block of a model an activation, those of image towers too.

    Args:
        model: any module.
        name: see `activation_layer`.
    """
    for block in model.modules():
        if isinstance(block, ResidualAttentionBlock):
            block.mlp.gelu = activation_layer(name)
