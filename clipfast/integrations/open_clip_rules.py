"""What a part of an OpenCLIP model must be like for clipfast's form of it to be the same function.

Each rule is asked twice: when the model is patched, and before each call of the patched part, for
what may have been set on the model since. A part is known by its structure and not by the names of
OpenCLIP's classes, which change between versions; `open_clip_probe` then compares it by numbers.

A rule gives the reason why a part does not fit, or None.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_module
from torch.utils.weak import WeakIdKeyDictionary

from clipfast.integrations.patching import Patched

_BLOCK_PARTS = ("ln_1", "attn", "ls_1", "ln_2", "mlp", "ls_2")
_MLP_PARTS = ("c_fc", "gelu", "c_proj")
# Where one of these stands on an object itself, its class no longer says what a call does.
_METHODS = (
    *("forward", "attention", "_embeds", "_pool", "_global_pool"),
    *("encode_text", "_encode_text", "get_cast_dtype", "get_weight_dtype"),
)
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
# Hooks of these move or gather parameters, recompute or count. None looks at shapes.
_CARRIERS = ("torch.", "deepspeed.")
_ROW_BY_ROW = (
    nn.Identity.forward,
    nn.LayerNorm.forward,
    nn.RMSNorm.forward,
    nn.Linear.forward,
    nn.GELU.forward,
    nn.ReLU.forward,
    nn.SiLU.forward,
)

# Of OpenCLIP's attention: None, or what makes it another function.
_OTHER_ATTENTION = ("logit_scale", "head_scale", "q_proj_weight", "k_proj_weight", "v_proj_weight")

# Class -> its methods when it was seen first.
_seen: dict[type, tuple[tuple[str, Any], ...]] = {}
# Causal masks on a GPU -> the version that was looked at: looking waits for the GPU.
_causal_masks = WeakIdKeyDictionary()


def kind_of(module: object) -> type:
    """The class of a module without what a patch or `fully_shard` put before it."""
    return next(
        base
        for base in type(module).__mro__
        if not issubclass(base, Patched) and not base.__module__.startswith("torch.distributed.")
    )


def is_open_clips(module: object) -> bool:
    """Whether OpenCLIP defines the class of a module itself: a subclass may do anything."""
    return kind_of(module).__module__.startswith("open_clip.")


def call_obstacle() -> str | None:
    """Why a call of now must be OpenCLIP's, whatever the model is like."""
    if torch._C._get_tracing_state() is not None or torch.compiler.is_exporting():
        return "it is being traced or exported"
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return "torch.func or forward-mode AD transforms it"
    for hooks in (
        torch_module._global_forward_pre_hooks,
        torch_module._global_forward_hooks,
        torch_module._global_backward_pre_hooks,
        torch_module._global_backward_hooks,
    ):
        if hooks and not _are_carriers(hooks):
            return "hooks watch all modules (register_module_forward_hook or its like)"
    return None


def vit_obstacle(visual: Any) -> str | None:
    """Why the last block of a vision transformer may not compute the class token alone."""
    if not is_open_clips(visual):
        return _is_a(visual)
    if missing := _missing(visual, ("transformer", "ln_post", "pool_type", "proj", "_embeds")):
        return missing
    if getattr(visual, "output_tokens", False):
        return "it returns all tokens (output_tokens)"
    if getattr(visual, "attn_pool", None) is not None:
        return "it pools by attention over all tokens (attentional_pool)"
    if visual.pool_type != "tok":
        return f"it reads all tokens (pool_type={visual.pool_type!r})"
    if visual.proj is not None and not isinstance(visual.proj, Tensor):
        return f"its proj is a {type(visual.proj).__name__}"
    return (
        _changed(visual, "forward", "_embeds", "_pool", "_global_pool")
        or _row_obstacle(visual.ln_post, "ln_post")
        or transformer_obstacle(visual.transformer)
    )


def text_obstacle(tower: Any) -> str | None:
    """Why tokens behind the one that a text tower reads may count.

    Args:
        tower: OpenCLIP's text tower, or its ``CLIP``, which holds the parts of one itself.
    """
    if not is_open_clips(tower):
        return _is_a(tower)
    needed = ("transformer", "token_embedding", "positional_embedding", "ln_final", "attn_mask")
    if missing := _missing(tower, (*needed, "text_projection")):
        return missing
    if getattr(tower, "cls_emb", None) is not None:
        return "it appends a class token that sees the padding (embed_cls)"
    if getattr(tower, "output_tokens", False):
        return "it returns all tokens (output_tokens)"
    if getattr(tower, "use_pad_mask", False):
        return "it masks what looks like padding (use_pad_mask)"
    pool_type, eos_id = text_pooling(tower)
    if pool_type not in ("argmax", "eos") or (pool_type == "eos" and eos_id is None):
        return f"it is not read at end-of-text (pool_type={pool_type!r})"
    return (
        _changed(tower, "forward", "_embeds", "encode_text", "_encode_text")
        or _embedding_obstacle(tower.token_embedding)
        or _row_obstacle(tower.ln_final, "ln_final")
        or _projection_obstacle(tower.text_projection)
        or transformer_obstacle(tower.transformer)
        or mask_obstacle(tower.attn_mask)
    )


def text_pooling(tower: Any) -> tuple[Any, Any]:
    """How a text tower is read, and its end-of-text id: `CLIP` calls them by longer names."""
    if hasattr(tower, "text_pool_type"):
        return tower.text_pool_type, getattr(tower, "text_eos_id", None)
    return getattr(tower, "pool_type", None), getattr(tower, "eos_id", None)


def pool_obstacle(pool: Any) -> str | None:
    """Why an attention pool may not do without keys and values of all tokens."""
    if not is_open_clips(pool):
        return _is_a(pool)
    linears = ("q_proj", "k_proj", "v_proj", "c_proj")
    if missing := _missing(pool, ("positional_embedding", "num_heads", *linears)):
        return missing
    for name in linears:
        part = getattr(pool, name)
        if reason := _linear_obstacle(part, name):
            return reason
        if name != "c_proj" and part.bias is None:
            return f"its {name} has no bias"
    return _changed(pool, "forward")


def mask_obstacle(mask: Any) -> str | None:
    """Why an attention mask lets a token see those behind it, or hides some before it."""
    if mask is None:
        return "its attention is not causal (no_causal_mask)"
    other = "its attention mask is not the causal one"
    if not isinstance(mask, Tensor) or mask.ndim != 2 or not mask.is_floating_point():
        return other
    if mask.is_meta:
        return None
    if mask.device.type == "cpu" or mask.is_inference():
        return None if _is_causal(mask) else other
    if _causal_masks.get(mask) != mask._version:
        if not _is_causal(mask):
            return other
        _causal_masks[mask] = mask._version
    return None


def _is_causal(mask: Tensor) -> bool:
    return torch.equal(mask, torch.full_like(mask, -torch.inf).triu(1))


def transformer_obstacle(transformer: Any) -> str | None:
    """Why the blocks of a transformer may not run over tokens laid end to end."""
    if not is_open_clips(transformer):
        return f"its transformer is a {kind_of(transformer).__name__}"
    blocks = getattr(transformer, "resblocks", None)
    if not isinstance(blocks, nn.ModuleList) or len(transformer._modules) != 1:
        return f"its transformer is a {kind_of(transformer).__name__} of another structure"
    if not len(blocks):
        return "it has no blocks"
    if not getattr(transformer, "batch_first", True):
        return "its transformer is not batch_first"
    reason = _watched(transformer, "transformer") or _changed(transformer, "forward")
    if reason:
        return reason
    for i, block in enumerate(blocks):
        if reason := _block_obstacle(block, f"resblocks.{i}"):
            return reason
    return None


def _block_obstacle(block: Any, name: str) -> str | None:
    parts = block._modules
    if not is_open_clips(block) or not _has_exactly(parts, _BLOCK_PARTS) or block._parameters:
        return f"its blocks are of another kind ({kind_of(block).__name__})"
    mlp = parts["mlp"]
    if type(mlp).forward is not nn.Sequential.forward or not _has_exactly(mlp._modules, _MLP_PARTS):
        return f"its {name}.mlp is a {type(mlp).__name__} of another structure"
    reason = (
        _changed(block, "forward", "attention")
        or _watched(block, name, carriers=True)
        or _watched(mlp, f"{name}.mlp")
        or _attention_obstacle(parts["attn"], f"{name}.attn")
    )
    if reason:
        return reason
    for key in ("ln_1", "ls_1", "ln_2", "ls_2"):
        if reason := _row_obstacle(parts[key], f"{name}.{key}"):
            return reason
    first, activation, last = mlp._modules.values()
    return (
        _linear_obstacle(first, f"{name}.mlp.c_fc")
        or _row_obstacle(activation, f"{name}.mlp.gelu")
        or _linear_obstacle(last, f"{name}.mlp.c_proj")
    )


def _attention_obstacle(attention: Any, name: str) -> str | None:
    """softmax(q k^T / sqrt(d)) v, in torch's module or in OpenCLIP's of newer versions."""
    is_torchs = type(attention).forward is nn.MultiheadAttention.forward
    if not is_torchs and not is_open_clips(attention):
        return f"its {name} is a {type(attention).__name__}"
    for key, parameter in attention._parameters.items():
        needs_one = key == "in_proj_weight"
        if (parameter is None) == needs_one and key != "in_proj_bias":
            return f"its {name} has keys and values of another kind ({key})"
    if "in_proj_weight" not in attention._parameters or not hasattr(attention, "num_heads"):
        return f"its {name} is a {type(attention).__name__} of another structure"
    if is_torchs:
        if attention.dropout or attention.add_zero_attn or not attention.batch_first:
            return f"its {name} has dropout, or keys and values of another kind"
    else:
        head_width = attention.in_proj_weight.shape[1] // attention.num_heads
        for key in _OTHER_ATTENTION:
            if getattr(attention, key, None) is not None:
                return f"its {name} has a {key}"
        scale = getattr(attention, "scale", None)
        if scale is not None and scale != head_width**-0.5:
            return f"its {name} has a scale of its own ({scale})"
    projection = attention._modules.get("out_proj")
    if projection is None:
        return f"its {name} is a {type(attention).__name__} of another structure"
    for key, part in attention._modules.items():
        if key != "out_proj" and part is not None and not _is_idle(part):
            return f"its {name}.{key} is a {type(part).__name__} (dropout, or a norm)"
    return (
        _changed(attention, "forward")
        or _watched(attention, name)
        or _linear_obstacle(projection, f"{name}.out_proj")
    )


def _is_idle(part: nn.Module) -> bool:
    """Whether a part of an attention is a place that nothing fills."""
    if _watched(part, ""):
        return False
    if type(part).forward is nn.Dropout.forward:
        return not part.p
    return type(part).forward is nn.Identity.forward


def _row_obstacle(part: Any, name: str) -> str | None:
    """Why a part may not work on each token by itself, whatever shape the tokens have."""
    forward = type(part).forward
    is_known = any(forward is known for known in _ROW_BY_ROW)
    if not is_known and not (is_open_clips(part) and not part._modules):
        return f"its {name} is a {type(part).__name__}"
    return _watched(part, name)


def _linear_obstacle(part: Any, name: str) -> str | None:
    if type(part).forward is not nn.Linear.forward:
        return f"its {name} is a {type(part).__name__}"
    return _watched(part, name)


def _embedding_obstacle(part: Any) -> str | None:
    if type(part).forward is not nn.Embedding.forward:
        return f"its token_embedding is a {type(part).__name__}"
    if part.max_norm is not None or part.scale_grad_by_freq:
        return "its token_embedding counts the padding (max_norm or scale_grad_by_freq)"
    return _watched(part, "token_embedding")


def _projection_obstacle(part: Any) -> str | None:
    if part is None or isinstance(part, Tensor):
        return None
    return _linear_obstacle(part, "text_projection")


def _watched(module: nn.Module, name: str, carriers: bool = False) -> str | None:
    """Why a call of a part must be OpenCLIP's: more than its class takes part in it.

    Args:
        module: the part.
        name: how the reason calls it.
        carriers: our form calls the module, so hooks that look at no shapes may stay.
    """
    held = module.__dict__
    for kind in _HOOKS:
        hooks = held[kind]
        if hooks and not (carriers and _are_carriers(hooks)):
            return f"hooks watch its {name}"
    for method in _METHODS:
        if method in held:
            return f"{method} of its {name} was replaced"
    if held.get("_compiled_call_impl") is not None:
        return f"its {name} is compiled by itself"
    return None


def _are_carriers(hooks: dict[int, Any]) -> bool:
    return all(_home(hook).startswith(_CARRIERS) for hook in hooks.values())


def _home(hook: Any) -> str:
    """The module that defines a hook."""
    hook = getattr(hook, "func", hook)
    return getattr(hook, "__module__", None) or type(hook).__module__


def _changed(module: object, *names: str) -> str | None:
    """Why the class or the object no longer does what it did when its class was seen first."""
    kind = kind_of(module)
    seen = _seen.get(kind)
    if seen is None:
        seen = _seen[kind] = tuple((name, getattr(kind, name, None)) for name in names)
    for name, function in seen:
        if getattr(kind, name, None) is not function:
            return f"{kind.__name__}.{name} was replaced"
    held = module.__dict__
    for name in names:
        if name in held:
            return f"its {name} was replaced"
    return None


def _has_exactly(parts: dict[str, Any], names: tuple[str, ...]) -> bool:
    return len(parts) == len(names) and all(parts.get(name) is not None for name in names)


def _missing(module: Any, names: tuple[str, ...]) -> str | None:
    for name in names:
        if not hasattr(module, name):
            return f"it is a {kind_of(module).__name__} without {name}, not known here"
    return None


def _is_a(module: object) -> str:
    return f"it is a {kind_of(module).__name__}"


def blocks_of(module: Any) -> Iterator[nn.Module]:
    """The blocks of a tower's transformer; none where it has no such thing."""
    blocks = getattr(getattr(module, "transformer", None), "resblocks", None)
    if isinstance(blocks, nn.ModuleList):
        yield from blocks
