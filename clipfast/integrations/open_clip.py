"""``patch_open_clip``: attention pooling, text tower and loss of a live OpenCLIP model, swapped."""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from clipfast.integrations import open_clip_modules as modules

LOSS = "open_clip.loss.ClipLoss"
_WRAPPERS = ("module", "_orig_mod")


@dataclass
class Patch:
    """What :func:`patch_open_clip` did.

    Attributes:
        swapped: part of the model -> what it does now.
        left_alone: part of the model -> why it is as it was.
    """

    swapped: dict[str, str] = field(default_factory=dict)
    left_alone: dict[str, str] = field(default_factory=dict)
    _restore: list[Callable[[], None]] = field(default_factory=list, repr=False)

    def undo(self) -> None:
        """Make everything as it was before; a second call does nothing.

        A part belongs to the patch that swapped it: one made later found it done, and does not
        restore it.
        """
        while self._restore:
            self._restore.pop()()

    def __str__(self) -> str:
        lines = [f"swapped     {part}: {what}" for part, what in self.swapped.items()]
        lines += [f"left alone  {part}: {why}" for part, why in self.left_alone.items()]
        return "\n".join(lines)

    def _swap(self, part: str, what: str, swaps: list[tuple[nn.Module, type]]) -> None:
        """Install classes before those of modules that do not have them yet."""
        self.swapped[part] = what
        for module, kind in swaps:
            if not isinstance(module, kind):
                self._restore.append(kind.install(module))


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
    patch = Patch()
    _patch_image_tower(patch, model.visual)
    _patch_text_tower(patch, model)
    _patch_loss(patch, loss)
    return patch


def _is_module(model: nn.Module, name: str) -> bool:
    return isinstance(getattr(model, name, None), nn.Module)


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


def _is_exactly(module: Any, kind: str | type) -> bool:
    """Whether a module is of this class itself, patched or not: a subclass may do anything."""
    own = type(module)
    if issubclass(own, modules.Patched):
        own = next(base for base in own.__mro__[1:] if not issubclass(base, modules.Patched))
    return own is (_kinds()[kind] if isinstance(kind, str) else kind)


def _is_clip(model: nn.Module) -> bool:
    return _is_exactly(model, "CLIP")


def _patch_image_tower(patch: Patch, visual: nn.Module) -> None:
    if _is_exactly(visual, "ResNet"):
        pool = visual.attnpool
        if not _is_exactly(pool, "pool"):
            patch.left_alone["visual.attnpool"] = f"it is a {type(pool).__name__}"
            return
        what = "no keys and values of all tokens"
        patch._swap("visual.attnpool", what, [(pool, modules.PooledAttention)])
        return
    if not _is_exactly(visual, "ViT"):
        patch.left_alone["visual"] = f"it is a {type(visual).__name__}"
        return
    reason = _vit_obstacle(visual) or _transformer_obstacle(visual.transformer)
    if reason:
        patch.left_alone["visual"] = reason
        return
    swaps = [(visual, modules.ReadViT), *_transformer_swaps(visual.transformer)]
    patch._swap("visual", "the last block computes the class token alone", swaps)


def _vit_obstacle(visual: nn.Module) -> str | None:
    if visual.output_tokens:
        return "it returns all tokens (output_tokens)"
    if visual.attn_pool is not None:
        return "it pools by attention over all tokens (attentional_pool)"
    if visual.pool_type != "tok":
        return f"it reads all tokens (pool_type={visual.pool_type!r})"
    return None


def _patch_text_tower(patch: Patch, model: nn.Module) -> None:
    holder, part, kind = model, "encode_text", modules.PackedCLIP
    if not _is_clip(model):
        holder, part, kind = model.text, "text", modules.PackedText
        if not _is_exactly(holder, "text"):
            patch.left_alone[part] = f"it is a {type(holder).__name__}"
            return
    reason = _text_obstacle(holder) or _transformer_obstacle(holder.transformer)
    if reason:
        patch.left_alone[part] = reason
        return
    swaps = [(holder, kind), *_transformer_swaps(holder.transformer)]
    patch._swap(part, "tokens behind end-of-text are not computed", swaps)


def _text_obstacle(tower: nn.Module) -> str | None:
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
    return None


def _transformer_obstacle(transformer: nn.Module) -> str | None:
    if not _is_exactly(transformer, "transformer"):
        return f"its transformer is a {type(transformer).__name__}"
    if not len(transformer.resblocks):
        return "it has no blocks"
    for block in transformer.resblocks:
        if not _is_exactly(block, "block") or hasattr(block, "ln_1_kv"):
            return f"its blocks are of another kind ({type(block).__name__})"
        attention = block.attn
        if not _is_exactly(attention, nn.MultiheadAttention):
            return f"its attention is a {type(attention).__name__}"
        unusual = attention.in_proj_weight is None or attention.bias_k is not None
        if unusual or attention.add_zero_attn or attention.dropout:
            return "its attention has dropout, or keys and values of another kind"
        if type(attention.out_proj).forward is not nn.Linear.forward:
            return f"its output projection is a {type(attention.out_proj).__name__}"
    return None


def _transformer_swaps(transformer: nn.Module) -> list[tuple[nn.Module, type]]:
    swaps: list[tuple[nn.Module, type]] = [(transformer, modules.LaidOutTransformer)]
    for block in transformer.resblocks:
        swaps += [(block, modules.LaidOutBlock), (block.attn, modules.LaidOutAttention)]
    return swaps


def _patch_loss(patch: Patch, loss: nn.Module | bool) -> None:
    if loss is False:
        patch.left_alone[LOSS] = "as asked (loss=False)"
    elif loss is True:
        patch.swapped[LOSS] = "one pass over the logits, where world_size=1 or gather_with_grad"
        patch._restore.append(_ClassPatch.acquire())
    elif not _is_exactly(loss, "loss"):
        patch.left_alone["loss"] = f"it is a {type(loss).__name__}"
    elif reason := modules.loss_obstacle(loss):
        patch.left_alone["loss"] = reason
    else:
        patch._swap("loss", "one pass over the logits", [(loss, modules.FusedLoss)])


class _ClassPatch:
    """The forward of OpenCLIP's loss class, swapped while any patch wants it."""

    _lock = threading.Lock()
    _wanted = 0
    _original: Callable | None = None

    @classmethod
    def acquire(cls) -> Callable[[], None]:
        kind = _kinds()["loss"]
        with cls._lock:
            if cls._wanted == 0:
                cls._original = kind.forward
                kind.forward = _make_forward(kind.forward)
            cls._wanted += 1
        return cls._release

    @classmethod
    def _release(cls) -> None:
        with cls._lock:
            cls._wanted -= 1
            if cls._wanted == 0:
                _kinds()["loss"].forward = cls._original


def _subclass_obstacle(loss: nn.Module) -> str | None:
    """Why a loss that inherits the swapped forward may not be ours: it changes what that calls."""
    parts = ("get_logits", "get_ground_truth")
    changed = [p for p in parts if getattr(type(loss), p) is not getattr(_kinds()["loss"], p)]
    return f"{type(loss).__name__} has a {changed[0]} of its own" if changed else None


def _make_forward(original: Callable) -> Callable:
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
