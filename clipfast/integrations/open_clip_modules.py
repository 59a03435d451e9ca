"""What the modules of a patched OpenCLIP model do instead.

Each class here is put before a module's own class, in place (see `patching.Patched`), and overrides
its forward. Before each call it asks `open_clip_rules` whether everything that it takes for granted
still holds. Where something does not, OpenCLIP's own forward runs, and the log says why.

So whoever watches a part of a tower by a hook sees what OpenCLIP would show. Hooks of FSDP and its
like on the blocks stay, and see tokens of all captions or images in one [T, C] tensor.

Legend: B captions or images, T tokens of all of them, C width, D embedding.
"""

from __future__ import annotations

import logging
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from clipfast.integrations import open_clip_rules as rules
from clipfast.integrations.patching import Patched
from clipfast.models.attention_pool import attention_pool
from clipfast.models.packing import PackedCaptions, pack_captions
from clipfast.models.sequences import SequenceLayout, UniformLayout
from clipfast.ops.products import linear

_logger = logging.getLogger("clipfast.integrations")
_said: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()


class PooledAttention(Patched):
    """OpenCLIP's `AttentionPool2d` without queries, keys and values of all tokens."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """[B, C, H, W] -> [B, D]."""
        if reason := _extra(args, kwargs) or rules.call_obstacle() or rules.pool_obstacle(self):
            say(self, "visual.attnpool", reason)
            return super().forward(x, *args, **kwargs)
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


class LaidOutBlock(Patched):
    """OpenCLIP's `ResidualAttentionBlock`, which also runs over tokens in a layout."""

    def forward(
        self, *args: Any, layout: SequenceLayout | None = None, read: bool = False, **kwargs: Any
    ) -> Any:
        """[T, C] -> [T, C], or [B, C] where only the rows that are read are wanted."""
        if layout is None:
            return super().forward(*args, **kwargs)
        x = args[0]
        attended = self.ls_1(_attend(self.attn, self.ln_1(x), layout, read))
        x = (layout.read(x) if read else x) + attended
        mlp = self.mlp
        hidden = mlp.gelu(_linear(mlp.c_fc, self.ln_2(x)))
        return x + self.ls_2(_linear(mlp.c_proj, hidden))


class TextTower(Patched):
    """What `CLIP` and `TextTransformer` share: a text tower without padding."""

    def encode_packed(self, text: Tensor, packed: PackedCaptions) -> Tensor:
        """Tokens [B, L] -> [B, D], not normalised."""
        cast_dtype = self.transformer.get_cast_dtype()
        tokens = text.flatten().index_select(0, packed.index)
        x = self.token_embedding(tokens).to(cast_dtype)
        # The gradient of an embedding is a sum in a fixed order; that of an index is not.
        x = x + F.embedding(packed.positions, self.positional_embedding).to(cast_dtype)
        x = self.ln_final(_run_blocks(self.transformer, x, packed.layout))
        if isinstance(self.text_projection, nn.Module):
            x = _linear(self.text_projection, x)
        elif self.text_projection is not None:
            x = linear(x, self.text_projection.T)
        return packed.layout.restore(x)


class PackedCLIP(TextTower):
    """OpenCLIP's `CLIP`, which holds the parts of its text tower itself."""

    def encode_text(self, text: Tensor, normalize: bool = False, *args: Any, **kwargs: Any) -> Any:
        """Tokens [B, L] -> [B, D]."""
        packed = _pack(self, "encode_text", text, _extra(args, kwargs), exact_length=True)
        if packed is None:
            return super().encode_text(text, normalize, *args, **kwargs)
        x = self.encode_packed(text, packed)
        return F.normalize(x, dim=-1) if normalize else x


class PackedInnerCLIP(TextTower):
    """The same of newer versions, where forward and `encode_text` call one method inside."""

    def _encode_text(self, text: Tensor, normalize: bool = False, *args: Any, **kwargs: Any) -> Any:
        """Tokens [B, L] -> [B, D]."""
        packed = _pack(self, "encode_text", text, _extra(args, kwargs), exact_length=True)
        if packed is None:
            return super()._encode_text(text, normalize, *args, **kwargs)
        x = self.encode_packed(text, packed)
        return F.normalize(x, dim=-1) if normalize else x


class PackedText(TextTower):
    """OpenCLIP's `TextTransformer`."""

    def forward(self, text: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Tokens [B, L] -> [B, D]."""
        packed = _pack(self, "text", text, _extra(args, kwargs), exact_length=False)
        if packed is None:
            return super().forward(text, *args, **kwargs)
        return self.encode_packed(text, packed)


class ReadViT(Patched):
    """OpenCLIP's `VisionTransformer`, whose last block computes the class token alone."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """[B, 3, S, S] -> [B, D]."""
        reason = (
            _extra(args, kwargs)
            or rules.call_obstacle()
            or rules.vit_obstacle(self)
            or _blocks_obstacle(self)
        )
        if reason:
            say(self, "visual", reason)
            return super().forward(x, *args, **kwargs)
        x = self._embeds(x)
        batch, length, width = x.shape
        x = _run_blocks(self.transformer, x.reshape(-1, width), UniformLayout(batch, length))
        x = self.ln_post(x)
        return x if self.proj is None else linear(x, self.proj.T)


@torch.compiler.disable
def say(module: Any, part: str, reason: str) -> None:
    """Log, once for a module and a reason, that OpenCLIP's own forward runs."""
    said = _said.setdefault(module, set())
    if reason not in said:
        said.add(reason)
        _logger.warning(
            "patch_open_clip: OpenCLIP's own forward of %s runs for now, because %s", part, reason
        )


def _extra(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    return "it is called with more arguments than are known here" if args or kwargs else None


def _blocks_obstacle(tower: Any) -> str | None:
    """Why the blocks of a patched tower are not ours to run."""
    for i, block in enumerate(tower.transformer.resblocks):
        if type(block).forward is not LaidOutBlock.forward:
            return f"its resblocks.{i} is another one than was patched"
    return None


def _run_blocks(transformer: Any, x: Tensor, layout: SequenceLayout) -> Tensor:
    """[T, C] -> [B, C], the rows that are read, in the order in which the sequences lie."""
    last = len(transformer.resblocks) - 1
    recomputes = getattr(transformer, "grad_checkpointing", False)
    for i, block in enumerate(transformer.resblocks):
        if recomputes:
            x = checkpoint(block, x, layout=layout, read=i == last, use_reentrant=False)
        else:
            x = block(x, layout=layout, read=i == last)
    return x


def _attend(attention: Any, x: Tensor, layout: SequenceLayout, read: bool) -> Tensor:
    """Attention within the sequences: [T, C] -> [T, C], or [B, C] of the rows that are read."""
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    if read:
        width = x.shape[1]
        weights = weight.split([width, 2 * width])
        biases = (None, None) if bias is None else bias.split([width, 2 * width])
        q = linear(layout.read(x), weights[0], biases[0])
        kv = linear(x, weights[1], biases[1])
        out = layout.attend_read(q, kv, attention.num_heads)
    else:
        out = layout.attend(linear(x, weight, bias), attention.num_heads)
    return _linear(attention.out_proj, out)


def _linear(layer: Any, x: Tensor) -> Tensor:
    """A linear layer, in float32 on the CPU by the faster library."""
    weight = layer.weight
    # Quantised weights and the like are tensors with ways of their own to multiply.
    if type(weight) is nn.Parameter or type(weight) is Tensor:
        return linear(x, weight, layer.bias)
    multiplied: Tensor = layer(x)
    return multiplied


@torch.compiler.disable
def _pack(
    tower: Any, part: str, text: Tensor, reason: str | None, exact_length: bool
) -> PackedCaptions | None:
    """Tokens up to the one that is read: the largest id of its row, or the first end-of-text.

    None where OpenCLIP's own forward must run.
    """
    reason = (
        reason
        or rules.call_obstacle()
        or rules.text_obstacle(tower)
        or _blocks_obstacle(tower)
        or _tokens_obstacle(tower, text, exact_length)
    )
    if reason:
        say(tower, part, reason)
        return None
    pool_type, eos_id = rules.text_pooling(tower)
    ends = text if pool_type == "argmax" else (text == eos_id).int()
    lengths = (ends.argmax(dim=-1) + 1).cpu()
    dtype = tower.transformer.get_cast_dtype()
    if torch.is_autocast_enabled(text.device.type):
        dtype = torch.get_autocast_dtype(text.device.type)
    heads = tower.transformer.resblocks[0].attn.num_heads
    width = tower.positional_embedding.shape[1]
    return pack_captions(text, lengths, width=width, heads=heads, dtype=dtype)


def _tokens_obstacle(tower: Any, text: Any, exact_length: bool) -> str | None:
    if not isinstance(text, Tensor) or text.ndim != 2 or text.is_floating_point():
        return "it is given something else than tokens [captions, positions]"
    positions, length = len(tower.positional_embedding), text.shape[1]
    if not 0 < length <= positions or (exact_length and length != positions):
        return f"it is given {length} tokens per caption for {positions} positions"
    if len(tower.attn_mask) < length:
        return f"its attention mask has {len(tower.attn_mask)} rows for {length} tokens"
    return None
