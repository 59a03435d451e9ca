"""What the modules of a patched OpenCLIP model do instead.

Each class here is put before a module's own class, in place (see `patching.Patched`), and overrides
its forward. What the forward here does not serve goes to the module's own.

Hooks on the text tower and its parts run as before. What they see has no padding: tokens of all
captions in one [T, C] tensor, and in the last block one row per caption behind its attention.

Legend: B captions or images, T tokens of all of them, C width, D embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from clipfast.integrations.patching import Patched
from clipfast.loss import ClipLoss
from clipfast.models.attention_pool import attention_pool
from clipfast.models.packing import PackedCaptions, pack_captions
from clipfast.models.sequences import SequenceLayout, UniformLayout
from clipfast.ops.products import linear


class PooledAttention(Patched):
    """OpenCLIP's `AttentionPool2d` without queries, keys and values of all tokens."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, D]."""
        return attention_pool(
            x,
            self.positional_embedding,
            self.q_proj.weight,
            self.q_proj.bias,
            self.k_proj.weight,
            self.k_proj.bias,
            self.v_proj.weight,
            self.v_proj.bias,
            self.c_proj.weight,
            self.c_proj.bias,
            self.num_heads,
        )


class LaidOutAttention(Patched):
    """`torch.nn.MultiheadAttention` that also attends within the sequences of a layout."""

    def forward(
        self,
        query: Tensor,
        *args: Any,
        layout: SequenceLayout | None = None,
        read: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """[T, C] -> [T, C], or [B, C] where only the rows that are read are wanted; and None."""
        if layout is None:
            return super().forward(query, *args, **kwargs)
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if read:
            width = query.shape[1]
            weights = weight.split([width, 2 * width])
            biases = (None, None) if bias is None else bias.split([width, 2 * width])
            q = linear(layout.read(query), weights[0], biases[0])
            kv = linear(query, weights[1], biases[1])
            out = layout.attend_read(q, kv, self.num_heads)
        else:
            out = layout.attend(linear(query, weight, bias), self.num_heads)
        return linear(out, self.out_proj.weight, self.out_proj.bias), None


class FastLinear(Patched):
    """`torch.nn.Linear` at the processor's own rate in float32 on the CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """[.., K] -> [.., N]."""
        return linear(input, self.weight, self.bias)


class LaidOutBlock(Patched):
    """OpenCLIP's `ResidualAttentionBlock` over tokens in a layout."""

    def forward(
        self,
        q_x: Tensor,
        k_x: Tensor | None = None,
        v_x: Tensor | None = None,
        attn_mask: Tensor | None = None,
        layout: SequenceLayout | None = None,
        read: bool = False,
    ) -> Tensor:
        """[T, C] -> [T, C], or [B, C] where only the rows that are read are wanted."""
        if layout is None:
            return super().forward(q_x, k_x, v_x, attn_mask)
        attended, _ = self.attn(self.ln_1(q_x), layout=layout, read=read)
        x = (layout.read(q_x) if read else q_x) + self.ls_1(attended)
        return x + self.ls_2(self.mlp(self.ln_2(x)))


class LaidOutTransformer(Patched):
    """OpenCLIP's `Transformer` over tokens in a layout."""

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, layout: SequenceLayout | None = None
    ) -> Tensor:
        """[T, C] -> [B, C], the rows that are read, in the order in which the sequences lie."""
        if layout is None:
            return super().forward(x, attn_mask)
        last = len(self.resblocks) - 1
        for i, block in enumerate(self.resblocks):
            if self.grad_checkpointing:
                x = checkpoint(block, x, None, None, None, layout, i == last, use_reentrant=False)
            else:
                x = block(x, layout=layout, read=i == last)
        return x


class TextTower(Patched):
    """What `CLIP` and `TextTransformer` share: a text tower without padding."""

    def encode_packed(self, text: Tensor, pool_type: str, eos_id: int | None) -> Tensor:
        """Tokens [B, L] -> [B, D], not normalised."""
        transformer = self.transformer
        block = transformer.resblocks[0]
        cast_dtype = transformer.get_cast_dtype()
        packed = _pack(text, pool_type, eos_id, block.attn.num_heads, cast_dtype, transformer.width)
        tokens = text.flatten().index_select(0, packed.index)
        x = self.token_embedding(tokens).to(cast_dtype)
        # The gradient of an embedding is a sum in a fixed order; that of an index is not.
        x = x + F.embedding(packed.positions, self.positional_embedding).to(cast_dtype)
        x = self.ln_final(transformer(x, layout=packed.layout))
        if isinstance(self.text_projection, nn.Module):
            x = self.text_projection(x)
        elif self.text_projection is not None:
            x = linear(x, self.text_projection.T)
        return packed.layout.restore(x)


class PackedCLIP(TextTower):
    """OpenCLIP's `CLIP`, which holds the parts of its text tower itself."""

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """Tokens [B, L] -> [B, D]."""
        x = self.encode_packed(text, self.text_pool_type, self.text_eos_id)
        return F.normalize(x, dim=-1) if normalize else x


class PackedText(TextTower):
    """OpenCLIP's `TextTransformer`."""

    def forward(self, text: Tensor) -> Tensor:
        """Tokens [B, L] -> [B, D]."""
        return self.encode_packed(text, self.pool_type, self.eos_id)


class ReadViT(Patched):
    """OpenCLIP's `VisionTransformer`, whose last block computes the class token alone."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, D]."""
        x = self._embeds(x)
        batch, length, width = x.shape
        x = self.transformer(x.reshape(-1, width), layout=UniformLayout(batch, length))
        x = self.ln_post(x)
        return x if self.proj is None else linear(x, self.proj.T)


class FusedLoss(Patched):
    """OpenCLIP's `ClipLoss`, where its gradients are those of clipfast's."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor | dict[str, Tensor]:
        """See `clipfast.ClipLoss.forward`."""
        return fused_loss(self, *args, **kwargs)


def loss_obstacle(loss: nn.Module) -> str | None:
    """Why an OpenCLIP `ClipLoss` cannot be ours; None where it can.

    Args:
        loss: the loss module, with the options that it was built with.
    """
    if loss.use_horovod:
        return "it gathers with Horovod"
    if loss.world_size > 1 and not loss.gather_with_grad:
        return (
            "without gather_with_grad OpenCLIP's gradients are not those of the global batch; "
            "pass --gather-with-grad (with --local-loss) to train with them, and with ours"
        )
    return None


def fused_loss(loss: nn.Module, *args: Any, **kwargs: Any) -> Tensor | dict[str, Tensor]:
    """The value of an OpenCLIP `ClipLoss` by `clipfast.ClipLoss`.

    OpenCLIP's gather needs as many pairs on each rank: here too, no rank asks the others.

    Args:
        loss: OpenCLIP's module.
        args, kwargs: those of `clipfast.ClipLoss.forward`.
    """
    ours = ClipLoss(rank=loss.rank, world_size=loss.world_size, equal_batches=True)
    return ours(*args, **kwargs)


@torch.compiler.disable
def _pack(
    text: Tensor,
    pool_type: str,
    eos_id: int | None,
    heads: int,
    cast_dtype: torch.dtype,
    width: int,
) -> PackedCaptions:
    """Tokens up to the one that is read: the largest id of its row, or the first `eos_id`."""
    ends = text if pool_type == "argmax" else (text == eos_id).int()
    lengths = (ends.argmax(dim=-1) + 1).cpu()
    dtype = cast_dtype
    if torch.is_autocast_enabled(text.device.type):
        dtype = torch.get_autocast_dtype(text.device.type)
    return pack_captions(text, lengths, width=width, heads=heads, dtype=dtype)
