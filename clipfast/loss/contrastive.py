"""The loss of Radford et al. 2021 over the global batch, exact under data parallelism.

Shapes: B local batch, G global batch over W ranks, D embedding width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from clipfast.loss.distributed import BatchShares, find_shares
from clipfast.loss.fused import LossPlan, start_texts, strip_loss
from clipfast.loss.reference import reference_loss
from clipfast.loss.tracing import is_autocast, is_transformed, no_autocast
from clipfast.ops import contrastive as ops
from clipfast.ops.normalize import DTYPES


@dataclasses.dataclass
class GatheredTexts:
    """Text features whose gather has been started; `clip_loss` takes them once.

    Once, because two losses' gradients would be added before their reduce-scatters have arrived.
    """

    text_features: Tensor  # [B, D]
    shares: BatchShares
    plan: LossPlan | None  # None: the reference, which gathers by itself
    normalize: bool
    texts: tuple[Tensor, ...] = ()
    is_taken: bool = False


def gather_texts(
    text_features: Tensor,
    *,
    group: dist.ProcessGroup | Literal["local"] | None = None,
    normalize: bool = True,
    impl: str = "auto",
    keep_logits: bool | str = "auto",
    workspace_bytes: int | None = None,
    batch_sizes: Sequence[int] | None = None,
) -> GatheredTexts:
    """Start the gather that the loss needs, so that the image tower can run meanwhile.

        texts = gather_texts(model.encode_text(tokens))
        loss = clip_loss(model.encode_image(images), texts, logit_scale)

    Equal to ``clip_loss(images, texts, logit_scale)`` with the same options. In backward the
    reduce-scatter of the texts' gradient hides behind the image tower's backward in the same way,
    because autograd runs what was computed last first.

    Args:
        text_features: ``[B, D]``, see `clip_loss`, as are the options.

    Returns:
        What `clip_loss` takes in the place of the text features, once. Over several ranks do
        take it: a gather that no loss waits for holds its memory.

    Raises:
        ValueError, TypeError: as `clip_loss`.
    """
    _check_features(text_features, "text_features")
    _check_options(keep_logits, workspace_bytes)
    autocast = is_autocast(text_features.device)
    with no_autocast(text_features.device):
        shares = find_shares(text_features, group, batch_sizes)
        if is_transformed(text_features):
            impl = _derivable(impl)
            if shares.group_name is not None:
                raise NotImplementedError(
                    "clip_loss under torch.func or forward-mode AD works on one process: over "
                    "ranks use loss.backward() or torch.autograd.grad"
                )
        if impl == "reference":
            return GatheredTexts(text_features, shares, None, normalize)
        choice = ops.choose(impl, text_features, autocast)
        keep = None if keep_logits == "auto" else bool(keep_logits)
        plan = LossPlan(choice, shares, normalize, keep, workspace_bytes)
        return GatheredTexts(
            text_features, shares, plan, normalize, start_texts(text_features, plan)
        )


def clip_loss(
    image_features: Tensor,
    text_features: Tensor | GatheredTexts,
    logit_scale: Tensor,
    *,
    group: dist.ProcessGroup | Literal["local"] | None = None,
    normalize: bool = True,
    impl: str = "auto",
    keep_logits: bool | str = "auto",
    workspace_bytes: int | None = None,
    batch_sizes: Sequence[int] | None = None,
) -> Tensor:
    """Symmetric cross-entropy over the cosine similarities of the global batch.

        S    = s U V^T,  U and V the features, their rows normalised
        loss = 1 / (2 G) * sum_i [lse_j S_ij + lse_j S_ji - 2 S_ii]

    On one process, equal to the following, without allocating its G x G matrices:

        logits = logit_scale * normalize(image_features) @ normalize(text_features).T
        target = torch.arange(len(logits))
        loss = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2

    Every rank returns the loss of the global batch. Its gradients follow one convention: after the
    mean over ranks that DistributedDataParallel and DeepSpeed apply, every parameter's gradient,
    the scale's included, is that of one process holding the whole batch. Logits are never rounded
    to half precision, whatever the features' type or autocast; results are the same bits on every
    run.

    Args:
        image_features: ``[B, D]``, float32, bfloat16, float16 or float64; the i-th row pairs with
            the i-th of ``text_features``. B may differ between ranks.
        text_features: ``[B, D]``, the same dtype and device; or what `gather_texts` returned,
            whose options then hold and must not be given again.
        logit_scale: one element, the factor s itself (``exp`` of CLIP's parameter), no unit.
        group: the ranks that hold the global batch; None is the default group where
            ``torch.distributed`` is initialised, one process elsewhere; "local" is this process
            alone.
        normalize: L2-normalise both features here (in float32). False takes them as they are; on a
            GPU half-precision ones must then fit float16.
        impl: "auto"; "cpu", "cuda" or "triton" (fused); "plain" (chunked plain PyTorch, any
            device); "reference" (plain PyTorch that holds all logits). `available_impls`
            lists what can serve a device, `chosen_impl` says what "auto" is; the log
            ``clipfast.loss`` says it once, unless under torch.compile. "reference" alone has second
            derivatives, on one process; it also is what "auto" means under ``torch.func`` and
            forward-mode AD.
        keep_logits: keep the logits from forward to backward, B G of them: 6 B G D floating-point
            operations instead of 8. They take 4 bytes each; on a GPU with half-precision features
            2, in steps of s / 32767 (0.003 at s = 100). "auto" keeps them where they fit
            ``workspace_bytes``.
        workspace_bytes: a budget for what is kept, and another for the chunk that is being worked
            on; what grows with B + G comes on top. Chunks are never smaller than what keeps the
            processor busy. None is 256 MiB on a CPU. On a GPU it is up to a sixteenth of its
            memory, and up to a quarter of what is free at the process's first loss, rounded down to
            a power of two: 4 GiB of an H100's 80 GB. The environment's ``CLIPFAST_LOSS_WORKSPACE``
            sets it too, in bytes. Chunks decide in which order sums are rounded, so the same bits
            come from the same budget.
        batch_sizes: B of every rank, where the caller knows them; trusted, so a wrong list may hang
            the other ranks. None asks them at each call, for which the host waits for the GPU where
            the group has no CPU backend: a loop that always drops the last incomplete batch can
            spare itself that. Under torch.compile None means the same B everywhere.

    Returns:
        The loss, a float32 scalar (float64 for float64 features). NaN features give NaN.

    Raises:
        ValueError: shapes or devices do not match, ranks differ in width or type, or ``impl``
            cannot serve here.
        TypeError: features are not floating point, or differ in dtype; the scale is no tensor.
        NotImplementedError: a second derivative of a fused form, when it is asked for; a fused
            form, or several ranks, under ``torch.func`` or forward-mode AD.

    Source: Radford et al. 2021, figure 3 and section 2.3.
    """
    if isinstance(text_features, GatheredTexts):
        if (group, normalize, impl, keep_logits, workspace_bytes, batch_sizes) != (
            *(None, True, "auto", "auto", None, None),
        ):
            raise ValueError("give the options to gather_texts, whose result decides here")
        pending = text_features
        if pending.is_taken:
            raise ValueError("these gathered texts have had their loss: gather_texts again")
        pending.is_taken = True
        _check(image_features, pending.text_features, logit_scale)
        if pending.plan is not None and is_transformed(image_features, logit_scale):
            raise NotImplementedError(
                "under torch.func or forward-mode AD give clip_loss the text features themselves, "
                'or gather_texts impl="reference"'
            )
    else:
        _check(image_features, text_features, logit_scale)
        if is_transformed(image_features, text_features, logit_scale):
            impl = _derivable(impl)
        pending = gather_texts(
            text_features,
            group=group,
            normalize=normalize,
            impl=impl,
            keep_logits=keep_logits,
            workspace_bytes=workspace_bytes,
            batch_sizes=batch_sizes,
        )
    with no_autocast(image_features.device):
        texts = pending.text_features
        scale = logit_scale.reshape(1).to(torch.promote_types(image_features.dtype, torch.float32))
        if pending.plan is None:
            return reference_loss(image_features, texts, scale, pending.shares, pending.normalize)
        return strip_loss(image_features, texts, scale, pending.texts, pending.plan)


def available_impls(device: torch.device | str) -> list[str]:
    """Names that `clip_loss` takes as ``impl`` for features on a device, best first."""
    return [*ops.available_impls(device), "reference"]


def chosen_impl(features: Tensor) -> str:
    """What ``impl="auto"`` is for such features."""
    return ops.choose("auto", features).impl


def _derivable(impl: str) -> str:
    """The implementation for a caller that derives every operation by itself."""
    if impl in ("auto", "reference"):
        return "reference"
    raise NotImplementedError(
        f"impl={impl!r} is one fused function, which torch.func and forward-mode AD cannot derive: "
        'use impl="reference" (as "auto" does there), which holds all logits'
    )


def _check(image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> None:
    _check_features(image_features, "image_features")
    _check_features(text_features, "text_features")
    if image_features.shape != text_features.shape:
        raise ValueError(
            "image_features and text_features must both be [batch, embedding] with pairs in the "
            f"same row; got {tuple(image_features.shape)} and {tuple(text_features.shape)}"
        )
    if image_features.dtype != text_features.dtype:
        raise TypeError(
            "image_features and text_features must be floating point of one dtype; got "
            f"{image_features.dtype} and {text_features.dtype}"
        )
    if not isinstance(logit_scale, Tensor):
        raise TypeError(
            "logit_scale must be a tensor, exp of the parameter; got "
            f"{type(logit_scale).__name__}: torch.tensor({logit_scale})"
        )
    if logit_scale.numel() != 1:
        raise ValueError(
            "logit_scale must hold one element, exp of the parameter; got "
            f"{tuple(logit_scale.shape)}"
        )
    if not (logit_scale.is_floating_point() and logit_scale.layout is torch.strided):
        raise TypeError(
            f"logit_scale must be floating point; got {logit_scale.dtype}, {logit_scale.layout}"
        )
    devices = {t.device for t in (image_features, text_features, logit_scale)}
    if len(devices) > 1:
        raise ValueError(
            "image_features, text_features and logit_scale must be on one device; got "
            f"{image_features.device}, {text_features.device} and {logit_scale.device}"
        )


def _check_features(features: Tensor, name: str) -> None:
    if not isinstance(features, Tensor) or features.layout is not torch.strided:
        kind = features.layout if isinstance(features, Tensor) else type(features).__name__
        raise TypeError(f"{name} must be a dense tensor; got {kind}")
    if features.ndim != 2:
        raise ValueError(f"{name} must be [batch, embedding]; got {tuple(features.shape)}")
    if features.shape[0] == 0 or features.shape[1] == 0:
        raise ValueError(
            f"{name} is empty, {tuple(features.shape)}: the loss is a mean over at least one pair"
        )
    if features.dtype not in DTYPES:
        raise TypeError(
            f"{name} must be floating point (float32, bfloat16, float16 or float64); got "
            f"{features.dtype}"
        )


def _check_options(keep_logits: bool | str, workspace_bytes: int | None) -> None:
    if workspace_bytes is not None and not isinstance(workspace_bytes, int):
        raise TypeError(f"workspace_bytes: expected an int, got {workspace_bytes!r}")
    if keep_logits not in (True, False, "auto"):
        raise ValueError(f"keep_logits: expected True, False or 'auto', got {keep_logits!r}")
    if workspace_bytes is not None and workspace_bytes <= 0:
        raise ValueError(f"workspace_bytes: expected a positive number, got {workspace_bytes}")
