"""``patch_open_clip``: attention pooling, text tower and loss of a live OpenCLIP model, swapped."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from clipfast.integrations import open_clip_modules as modules
from clipfast.integrations.patching import MethodReplacement, Patch, Replacement, is_exactly

__all__ = ["Patch", "patch_open_clip"]

LOSS = "open_clip.loss.ClipLoss"
_WRAPPERS = ("module", "_orig_mod")


@functools.cache
def _kinds() -> dict[str, type]:
    """OpenCLIP's classes: whoever has a model of it has imported it already."""
    import open_clip.loss
    import open_clip.model
    import open_clip.modified_resnet
    import open_clip.transformer

    return {
        "CLIP": open_clip.model.CLIP,
        "ResNet": open_clip.modified_resnet.ModifiedResNet,
        "pool": open_clip.modified_resnet.AttentionPool2d,
        "ViT": open_clip.transformer.VisionTransformer,
        "text": open_clip.transformer.TextTransformer,
        "transformer": open_clip.transformer.Transformer,
        "block": open_clip.transformer.ResidualAttentionBlock,
        "loss": open_clip.loss.ClipLoss,
    }


@functools.cache
def _table() -> dict[str, Replacement | MethodReplacement]:
    """What replaces what, by the part's name in the report."""
    kinds = _kinds()
    laid_out = {
        kinds["transformer"]: modules.LaidOutTransformer,
        kinds["block"]: modules.LaidOutBlock,
        nn.MultiheadAttention: modules.LaidOutAttention,
        nn.Linear: modules.FastLinear,
    }
    without_padding = "tokens behind end-of-text are not computed"
    rows = (
        Replacement(
            part="visual.attnpool",
            path="visual.attnpool",
            kind=kinds["pool"],
            by=modules.PooledAttention,
            what="no keys and values of all tokens",
        ),
        Replacement(
            part="visual",
            path="visual",
            kind=kinds["ViT"],
            by=modules.ReadViT,
            what="the last block computes the class token alone",
            obstacle=_vit_obstacle,
            within="transformer",
            along=laid_out,
        ),
        # A `CLIP` holds the parts of its text tower itself.
        Replacement(
            part="encode_text",
            path="",
            kind=kinds["CLIP"],
            by=modules.PackedCLIP,
            what=without_padding,
            obstacle=_text_obstacle,
            within="transformer",
            along=laid_out,
        ),
        Replacement(
            part="text",
            path="text",
            kind=kinds["text"],
            by=modules.PackedText,
            what=without_padding,
            obstacle=_text_obstacle,
            within="transformer",
            along=laid_out,
        ),
        Replacement(
            part="loss",
            path="",
            kind=kinds["loss"],
            by=modules.FusedLoss,
            what="one pass over the logits",
            obstacle=modules.loss_obstacle,
        ),
        MethodReplacement(
            part=LOSS,
            owner=kinds["loss"],
            name="forward",
            make=_make_forward,
            what="one pass over the logits, where world_size=1 or gather_with_grad",
        ),
    )
    return {row.part: row for row in rows}


def patch_open_clip(model: nn.Module, *, loss: nn.Module | bool = True) -> Patch:
    """Swap the slow parts of an OpenCLIP model for clipfast's, in place.

        model, _, preprocess = open_clip.create_model_and_transforms("RN50")
        print(clipfast.patch_open_clip(model))

    Outputs and gradients stay the same to rounding. So do parameters and their names, the state
    dict, the optimizer's references, `set_grad_checkpointing`, hooks (see `open_clip_modules`),
    autocast, eval mode and copies of the model; `torch.compile` breaks its graph where captions are
    packed. A pickled model is the plain one. What is swapped:

    - attention pooling of a ResNet: keys and values of all tokens are never computed;
    - a causal text tower that is read at its end-of-text token: tokens behind that one, padding
      mostly, are never computed, nor is anything but the rows that are read in the last block;
    - a ViT read at its class token: the last block computes that row alone;
    - linear layers of these transformers, in float32 on the CPU: the faster library multiplies;
    - ``open_clip.loss.ClipLoss``: logits are never kept nor rounded (`clipfast.ClipLoss`).

    What does not fit one of these is left alone and named in the result. Call it before the model
    is wrapped for data parallelism or compiled, or on the wrapped model before its first batch.

    Args:
        model: an OpenCLIP model (``CLIP``, ``CustomTextCLIP``, ``CoCa``), on any device.
        loss: True swaps the forward of OpenCLIP's class, for all its objects in this process, and
            decides at each call by the object's options: ranks without ``gather_with_grad`` keep
            OpenCLIP's loss, and a warning says so once. A loss object swaps that one alone, and
            decides here. False leaves the loss alone.

    Returns:
        What was swapped and what was not, with `undo()`.

    Raises:
        TypeError: the model has no image and text tower of OpenCLIP's kind.
    """
    while name := next((name for name in _WRAPPERS if _is_module(model, name)), None):
        model = getattr(model, name)
    if not hasattr(model, "visual") or not (hasattr(model, "text") or _is_clip(model)):
        raise TypeError(
            f"expected a model of open_clip.create_model, got {type(model).__name__}: it has no "
            "image tower `visual` beside a text tower"
        )
    table, patch = _table(), Patch()
    is_resnet = is_exactly(model.visual, _kinds()["ResNet"])
    patch.apply(table["visual.attnpool" if is_resnet else "visual"], model)
    patch.apply(table["encode_text" if _is_clip(model) else "text"], model)
    if loss is False:
        patch.left_alone[LOSS] = "as asked (loss=False)"
    elif loss is True:
        patch.apply(table[LOSS], model)
    else:
        patch.apply(table["loss"], loss)
    return patch


def _is_module(model: nn.Module, name: str) -> bool:
    return isinstance(getattr(model, name, None), nn.Module)


def _is_clip(model: nn.Module) -> bool:
    return is_exactly(model, _kinds()["CLIP"])


def _vit_obstacle(visual: Any) -> str | None:
    if visual.output_tokens:
        return "it returns all tokens (output_tokens)"
    if visual.attn_pool is not None:
        return "it pools by attention over all tokens (attentional_pool)"
    if visual.pool_type != "tok":
        return f"it reads all tokens (pool_type={visual.pool_type!r})"
    return _transformer_obstacle(visual.transformer)


def _text_obstacle(tower: Any) -> str | None:
    if getattr(tower, "cls_emb", None) is not None:
        return "it appends a class token that sees the padding (embed_cls)"
    if getattr(tower, "output_tokens", False):
        return "it returns all tokens (output_tokens)"
    mask = tower.attn_mask
    if mask is None:
        return "its attention is not causal (no_causal_mask)"
    if not mask.is_meta and not torch.equal(mask, torch.full_like(mask, -torch.inf).triu(1)):
        return "its attention mask is not the causal one"
    pool_type = getattr(tower, "text_pool_type", None) or getattr(tower, "pool_type", None)
    if pool_type not in ("argmax", "eos"):
        return f"it is not read at end-of-text (pool_type={pool_type!r})"
    return _transformer_obstacle(tower.transformer)


def _transformer_obstacle(transformer: Any) -> str | None:
    if not is_exactly(transformer, _kinds()["transformer"]):
        return f"its transformer is a {type(transformer).__name__}"
    if not len(transformer.resblocks):
        return "it has no blocks"
    for block in transformer.resblocks:
        if not is_exactly(block, _kinds()["block"]) or hasattr(block, "ln_1_kv"):
            return f"its blocks are of another kind ({type(block).__name__})"
        attention = block.attn
        if not is_exactly(attention, nn.MultiheadAttention):
            return f"its attention is a {type(attention).__name__}"
        unusual = attention.in_proj_weight is None or attention.bias_k is not None
        if unusual or attention.add_zero_attn or attention.dropout:
            return "its attention has dropout, or keys and values of another kind"
        if type(attention.out_proj).forward is not nn.Linear.forward:
            return f"its output projection is a {type(attention.out_proj).__name__}"
    return None


def _subclass_obstacle(loss: nn.Module) -> str | None:
    """Why a loss that inherits the swapped forward may not be ours: it changes what that calls."""
    parts = ("get_logits", "get_ground_truth")
    changed = [p for p in parts if getattr(type(loss), p) is not getattr(_kinds()["loss"], p)]
    return f"{type(loss).__name__} has a {changed[0]} of its own" if changed else None


def _make_forward(original: Callable[..., Any]) -> Callable[..., Any]:
    """A forward that is ours where the object's options allow."""

    @functools.wraps(original)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Tensor | dict[str, Tensor]:
        reason = _subclass_obstacle(self) or modules.loss_obstacle(self)
        if reason is None:
            return modules.fused_loss(self, *args, **kwargs)
        if not torch.compiler.is_compiling():
            warnings.warn(f"{LOSS} is left alone: {reason}", stacklevel=2)
        return original(self, *args, **kwargs)

    return forward
