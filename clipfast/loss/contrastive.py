"""The loss of Radford et al. 2021 over the global batch, exact under data parallelism.

Shapes: B local batch, G = W * B global batch over W ranks, D embedding width.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from clipfast.loss.distributed import gather_features, mean_over_ranks, require_equal_batches
from clipfast.ops import l2_normalize


def clip_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    *,
    group: dist.ProcessGroup | None = None,
    normalize: bool = True,
) -> Tensor:
    r"""Symmetric cross-entropy over the cosine similarities of the global batch.

    .. math::
        S = s\,\hat U \hat V^\top, \qquad
        \mathrm{loss} = \frac{1}{2G} \sum_i
            \bigl[\mathrm{lse}_j S_{ij} + \mathrm{lse}_j S_{ji} - 2 S_{ii}\bigr]

    On one process, equal to::

        logits = logit_scale * normalize(image_features) @ normalize(text_features).T
        target = torch.arange(len(logits))
        loss = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2

    Every rank returns the loss of the global batch. Its gradients follow one convention: after the
    mean over ranks that DistributedDataParallel and DeepSpeed apply, every parameter's gradient,
    the scale's included, is that of one process holding the whole batch.

    Args:
        image_features: ``[B, D]``, float32, bfloat16 or float16; the i-th row pairs with the i-th
            of ``text_features``. B is the same on every rank.
        text_features: ``[B, D]``, the same dtype and device.
        logit_scale: one element, the factor s itself (``exp`` of CLIP's parameter), no unit.
        group: the ranks that hold the global batch; None is the default group where
            ``torch.distributed`` is initialised, one process elsewhere.
        normalize: L2-normalise both features here (in float32). False takes them as they are.

    Returns:
        The loss, a float32 scalar (float64 for float64 features).

    Raises:
        ValueError: shapes do not match, or ranks hold batches of different sizes.
        TypeError: features are not floating point, or differ in dtype.

    Source: Radford et al. 2021, figure 3 and section 2.3.
    """
    _check(image_features, text_features, logit_scale)
    compute_dtype = torch.promote_types(image_features.dtype, torch.float32)
    if normalize:
        image_features = l2_normalize(image_features, out_dtype=compute_dtype)
        text_features = l2_normalize(text_features, out_dtype=compute_dtype)
    image_features, text_features = (
        image_features.to(compute_dtype),
        text_features.to(compute_dtype),
    )
    logit_scale = logit_scale.to(compute_dtype)

    if not _is_distributed(group):
        return _strip_loss(
            image_features, text_features, image_features, text_features, logit_scale
        )

    require_equal_batches(image_features, group)
    local_loss = _strip_loss(
        image_features,
        text_features,
        gather_features(image_features, group),
        gather_features(text_features, group),
        logit_scale,
        first_row=dist.get_rank(group) * image_features.shape[0],
    )
    # The value is the global loss on every rank; the gradient stays that of the local strip, which
    # the gather's reduce-scatter and the mean over ranks complete.
    return local_loss + (mean_over_ranks(local_loss.detach(), group) - local_loss.detach())


def _strip_loss(
    image_features: Tensor,  # [B, D]
    text_features: Tensor,  # [B, D]
    all_image_features: Tensor,  # [G, D]
    all_text_features: Tensor,  # [G, D]
    logit_scale: Tensor,
    first_row: int = 0,
) -> Tensor:
    """Mean over this rank's rows and columns, whose pairs start at ``first_row`` of the batch."""
    rows = image_features.shape[0]
    target = torch.arange(first_row, first_row + rows, device=image_features.device)
    # A matrix product under autocast would round the logits to half precision.
    with torch.autocast(image_features.device.type, enabled=False):
        image_to_text = logit_scale * image_features @ all_text_features.T
        text_to_image = logit_scale * text_features @ all_image_features.T
        return (F.cross_entropy(image_to_text, target) + F.cross_entropy(text_to_image, target)) / 2


def _is_distributed(group: dist.ProcessGroup | None) -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1


def _check(image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> None:
    if image_features.ndim != 2 or image_features.shape != text_features.shape:
        raise ValueError(
            "image_features and text_features must both be [batch, embedding] with pairs in the "
            f"same row; got {tuple(image_features.shape)} and {tuple(text_features.shape)}"
        )
    if image_features.shape[0] == 0:
        raise ValueError("the batch is empty: the loss is a mean over at least one pair")
    if logit_scale.numel() != 1:
        raise ValueError(
            "logit_scale must hold one element, exp of the parameter; got "
            f"{tuple(logit_scale.shape)}"
        )
    if not image_features.is_floating_point() or image_features.dtype != text_features.dtype:
        raise TypeError(
            "image_features and text_features must be floating point of one dtype; got "
            f"{image_features.dtype} and {text_features.dtype}"
        )
