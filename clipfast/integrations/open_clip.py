"""``patch_open_clip``: attention pooling, text tower and loss of a live OpenCLIP model, swapped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from clipfast.integrations import open_clip_loss as losses
from clipfast.integrations import open_clip_modules as modules
from clipfast.integrations import open_clip_rules as rules
from clipfast.integrations.open_clip_loss import LOSS
from clipfast.integrations.open_clip_probe import captions, feature_maps, images, probe
from clipfast.integrations.patching import MethodReplacement, Patch, Patched, Replacement, own_class

__all__ = ["Patch", "patch_open_clip"]

# What wraps a model: data parallelism, torch.compile, and OpenCLIP's tasks.
_WRAPPERS = ("module", "_orig_mod", "trainable_module")
_TOWERS = ("visual", "text", "transformer")


def patch_open_clip(model: nn.Module, *, loss: nn.Module | bool = True) -> Patch:
    """Swap the slow parts of an OpenCLIP model for clipfast's, in place.

        model, _, preprocess = open_clip.create_model_and_transforms("RN50")
        print(clipfast.patch_open_clip(model))

    Outputs and gradients stay the same to rounding. So do parameters and their names, the state
    dict, the optimizer's references, autocast, eval mode and copies of the model. A pickled model
    is the plain one. `torch.compile` breaks its graph where captions are packed. What is swapped:

    - attention pooling of a ResNet: keys and values of all tokens are never computed;
    - a causal text tower that is read at its end-of-text token: tokens behind that one, padding
      mostly, are never computed, nor is anything but the rows that are read in the last block;
    - a ViT read at its class token: the last block computes that row alone;
    - linear layers of these transformers, in float32 on the CPU: the faster library multiplies;
    - ``open_clip.loss.ClipLoss``: logits are never kept nor rounded (`clipfast.ClipLoss`).

    A part is known by its structure, and compared with OpenCLIP's own by numbers before it is
    swapped. What does not fit, or is not known, is left alone and named in the result.

    What is set later is followed: an option such as ``output_tokens``, a mask, a hook on a part of
    a tower, a layer put in another's place. While something does not fit, OpenCLIP's own forward of
    that tower runs, and the log ``clipfast.integrations`` says why, once.

    Call it before the model is wrapped for data parallelism or compiled, or on the wrapped model
    before its first batch.

    Args:
        model: an OpenCLIP model (``CLIP``, ``CustomTextCLIP``, ``CoCa``), on any device.
        loss: True swaps the forward of OpenCLIP's class, for all its objects in this process, and
            decides at each call by the object's options: ranks without ``gather_with_grad`` keep
            OpenCLIP's loss, and a warning says so once. A loss object swaps that one alone.
            False leaves the loss alone.

    Returns:
        What was swapped and what was not, with `undo()`.

    Raises:
        TypeError: the model has no part of OpenCLIP's.
    """
    while name := next((name for name in _WRAPPERS if _is_module(model, name)), None):
        model = getattr(model, name)
    if not any(_is_module(model, name) for name in _TOWERS) and not _has_part_of_open_clip(model):
        raise TypeError(
            f"expected a model of open_clip.create_model, got {type(model).__name__}: no part of "
            "it is OpenCLIP's"
        )
    patch = Patch()
    patch.apply(_image_row(model), model)
    patch.apply(_text_row(model), model)
    _patch_loss(patch, model, loss)
    return patch


def _is_module(model: nn.Module, name: str) -> bool:
    return isinstance(getattr(model, name, None), nn.Module)


def _has_part_of_open_clip(model: nn.Module) -> bool:
    return any(rules.is_open_clips(part) for part in model.modules())


def _image_row(model: Any) -> Replacement:
    visual = getattr(model, "visual", None)
    pool = getattr(visual, "attnpool", None)
    # A ResNet is known by its pool; whatever comes before is OpenCLIP's own.
    if isinstance(pool, nn.Module) and rules.is_open_clips(visual):
        return _row(
            part="visual.attnpool",
            path="visual.attnpool",
            by=modules.PooledAttention,
            what="no keys and values of all tokens",
            rule=rules.pool_obstacle,
            make_input=feature_maps,
        )
    return _row(
        part="visual",
        path="visual",
        by=modules.ReadViT,
        what="the last block computes the class token alone",
        rule=rules.vit_obstacle,
        make_input=images,
        blocks_of=visual,
    )


def _text_row(model: Any) -> Replacement:
    # A `CLIP` holds the parts of its text tower itself.
    is_clip = _is_module(model, "transformer") and not _is_module(model, "text")
    packed = modules.PackedInnerCLIP if hasattr(model, "_encode_text") else modules.PackedCLIP
    return _row(
        part="encode_text" if is_clip else "text",
        path="" if is_clip else "text",
        by=packed if is_clip else modules.PackedText,
        what="tokens behind end-of-text are not computed",
        rule=rules.text_obstacle,
        make_input=captions,
        blocks_of=model if is_clip else getattr(model, "text", None),
    )


def _row(
    *,
    part: str,
    path: str,
    by: type[Patched],
    what: str,
    rule: Callable[[Any], str | None],
    make_input: Callable[[Any], Tensor],
    blocks_of: Any = None,
) -> Replacement:
    """A row whose obstacle is a rule, and then the comparison by numbers."""

    def obstacle(module: nn.Module) -> str | None:
        return rule(module) or probe(module, row.swaps(module), make_input)

    row = Replacement(
        part=part,
        path=path,
        kind=None,
        by=by,
        what=what,
        obstacle=obstacle,
        within="transformer",
        along={own_class(block): modules.LaidOutBlock for block in rules.blocks_of(blocks_of)},
    )
    return row


def _patch_loss(patch: Patch, model: nn.Module, loss: nn.Module | bool) -> None:
    what = "one pass over the logits"
    if loss is False:
        patch.left_alone[LOSS] = "as asked (loss=False)"
    elif loss is not True:
        patch.apply(
            Replacement(
                part="loss",
                path="",
                kind=None,
                by=losses.FusedLoss,
                what=what,
                obstacle=losses.object_obstacle,
            ),
            loss,
        )
    elif reason := losses.class_obstacle(model):
        patch.left_alone[LOSS] = reason
    else:
        if _is_module(model, "text_decoder"):
            what = f"CoCaLoss's contrastive part: {what}"
        patch.apply(
            MethodReplacement(
                part=LOSS,
                owner=losses.find_class() or nn.Module,
                name="forward",
                make=losses.make_forward,
                what=f"{what}, where world_size=1 or gather_with_grad",
            ),
            model,
        )
