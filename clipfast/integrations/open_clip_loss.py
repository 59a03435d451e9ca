"""OpenCLIP's `ClipLoss` by clipfast's, where values and gradients are the same.

It is decided at each call, by the object's options of then. A version unknown here may have options
of its own, so an object's first call with given options is compared by numbers with OpenCLIP's.
"""

from __future__ import annotations

import copy
import functools
import sys
import warnings
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from clipfast.integrations import open_clip_rules as rules
from clipfast.integrations.patching import Patched, own_class
from clipfast.loss import ClipLoss

LOSS = "open_clip.loss.ClipLoss"
_PARTS = ("get_logits", "get_ground_truth")
_ARGUMENTS = ("image_features", "text_features", "logit_scale", "logit_bias", "output_dict")
_TOLERANCE = 1e-6
# Loss object -> its options when it was compared, and what came of it.
_compared: WeakKeyDictionary[nn.Module, tuple[Any, str | None]] = WeakKeyDictionary()


def find_class() -> type[nn.Module] | None:
    """OpenCLIP's class, where this process has imported it under the name that is known."""
    kind = getattr(sys.modules.get("open_clip.loss"), "ClipLoss", None)
    return kind if isinstance(kind, type) and issubclass(kind, nn.Module) else None


def class_obstacle(model: Any) -> str | None:
    """Why the class of OpenCLIP's loss is left alone for a model, or None."""
    kind = find_class()
    if kind is None:
        return "this version of OpenCLIP has no such class"
    if issubclass(kind, ClipLoss):
        return "it is clipfast's ClipLoss already"
    if getattr(model, "logit_scale", None) is None:
        return "this model has no logit_scale: no contrastive loss trains it"
    if getattr(model, "logit_bias", None) is not None:
        return "this model has a logit_bias: SigLipLoss trains it, and stays OpenCLIP's"
    return None


def object_obstacle(loss: nn.Module) -> str | None:
    """Why a loss object is left alone, or None."""
    kind = find_class()
    if isinstance(loss, ClipLoss):
        return "it is clipfast's ClipLoss already"
    if kind is None or not isinstance(loss, kind) or own_class(loss) is not kind:
        return f"it is a {type(loss).__name__}"
    return options_obstacle(loss)


def options_obstacle(loss: Any) -> str | None:
    """Why the options of a `ClipLoss` ask for other gradients than clipfast's, or None."""
    if getattr(loss, "use_horovod", False):
        return "it gathers with Horovod"
    world_size = getattr(loss, "world_size", None)
    if not isinstance(world_size, int) or not isinstance(getattr(loss, "rank", None), int):
        return f"it is a {type(loss).__name__} without rank and world_size, not known here"
    if world_size > 1 and not getattr(loss, "gather_with_grad", False):
        return (
            "without gather_with_grad OpenCLIP's gradients are not those of the global batch; "
            "pass --gather-with-grad (with --local-loss) to train with them, and with ours"
        )
    return None


class FusedLoss(Patched):
    """OpenCLIP's `ClipLoss`, where its gradients are those of clipfast's."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """See `clipfast.ClipLoss.forward`."""
        return _call(self, super().forward, args, kwargs)  # type: ignore[misc]


def make_forward(original: Callable[..., Any]) -> Callable[..., Any]:
    """The forward of OpenCLIP's class that is ours where the object's options allow."""

    @functools.wraps(original)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return _call(self, functools.partial(original, self), args, kwargs, original)

    return forward


def fused_loss(loss: Any, *args: Any, **kwargs: Any) -> Tensor | dict[str, Tensor]:
    """The value of an OpenCLIP `ClipLoss` by `clipfast.ClipLoss`.

    OpenCLIP's gather needs as many pairs on each rank: here too, no rank asks the others.

    Args:
        loss: OpenCLIP's module.
        args, kwargs: those of `clipfast.ClipLoss.forward`.
    """
    ours = ClipLoss(rank=loss.rank, world_size=loss.world_size, equal_batches=True)
    return ours(*args, **kwargs)


def _call(
    loss: Any,
    theirs: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    original: Callable[..., Any] | None = None,
) -> Any:
    reason = (
        _subclass_obstacle(loss)
        or options_obstacle(loss)
        or _arguments_obstacle(args, kwargs)
        or (None if torch.compiler.is_compiling() else _difference(loss, original))
    )
    if reason is None:
        return fused_loss(loss, *args, **kwargs)
    if not torch.compiler.is_compiling():
        warnings.warn(f"{LOSS} is left alone: {reason}", stacklevel=3)
    return theirs(*args, **kwargs)


def _subclass_obstacle(loss: object) -> str | None:
    """Why a loss that inherits the swapped forward may not be ours: it changes what that calls."""
    kind = find_class()
    for part in _PARTS:
        own = getattr(type(loss), part, None)
        if own is None or own is not getattr(kind, part, None) or part in vars(loss):
            return f"{type(loss).__name__} has a {part} of its own"
    return None


def _arguments_obstacle(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Why a call is not one that `clipfast.ClipLoss` can serve."""
    given = dict(zip(_ARGUMENTS, args, strict=False))
    if len(args) > len(_ARGUMENTS) or not all(name in _ARGUMENTS for name in kwargs):
        return "it is called with more arguments than are known here"
    given.update(kwargs)
    images, texts, scale, bias = (given.get(name) for name in _ARGUMENTS[:4])
    if not (isinstance(images, Tensor) and isinstance(texts, Tensor) and isinstance(scale, Tensor)):
        return "features and scale are not tensors"
    if images.dtype != texts.dtype or images.shape != texts.shape or images.ndim != 2:
        return "image and text features differ in type or shape"
    if scale.numel() != 1 or scale.device != images.device:
        return "the scale is not one number beside the features"
    if bias is not None and not (isinstance(bias, Tensor) and bias.numel() == 1):
        return "the bias is not one number"
    return rules.call_obstacle()


def _difference(loss: Any, original: Callable[..., Any] | None = None) -> str | None:
    """Why an object with its options of now computes another loss than clipfast's, or None."""
    options = _options_of(loss)
    known = _compared.get(loss)
    if known is None or known[0] != options:
        known = _compared[loss] = options, compare(loss, original)
    return known[1]


def _options_of(loss: Any) -> list[tuple[str, Any]]:
    kinds = (bool, int, float, str, type(None))
    return sorted((k, v) for k, v in vars(loss).items() if isinstance(v, kinds))


def compare(loss: nn.Module, original: Callable[..., Any] | None = None) -> str | None:
    """Compare a `ClipLoss` object's value and gradients on three pairs with clipfast's.

    Args:
        loss: the object; a copy of it, on one process, is asked.
        original: OpenCLIP's forward; None is that of the object's own class.

    Returns:
        The reason why they differ, or None.
    """
    forward = original or own_class(loss).forward  # type: ignore[attr-defined]
    try:
        twin: Any = copy.deepcopy(loss)
        twin.world_size, twin.rank = 1, 0
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
            theirs = _value_and_gradients(functools.partial(forward, twin))
            ours = _value_and_gradients(ClipLoss())
    except Exception as error:  # whatever a version unknown here raises, the run goes on
        return f"it could not be compared with clipfast's ({type(error).__name__}: {error})"
    if all(torch.allclose(a, b, _TOLERANCE, _TOLERANCE) for a, b in zip(theirs, ours, strict=True)):
        return None
    return f"{type(loss).__name__} computes another loss than that of Radford et al. 2021"


def _value_and_gradients(call: Callable[..., Any]) -> list[Tensor]:
    steps = torch.arange(24, dtype=torch.float64, device="cpu").reshape(2, 3, 4)
    features = [nn.functional.normalize(x, dim=1).requires_grad_() for x in (steps + 1).sin()]
    scale = torch.tensor(5.0, dtype=torch.float64, device="cpu", requires_grad=True)
    value = call(*features, scale)
    return [value, *torch.autograd.grad(value, [*features, scale])]
