"""The loss in plain PyTorch, as the paper's figure 3 reads: the truth in tests, any device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clipfast.loss import distributed
from clipfast.loss.distributed import BatchShares
from clipfast.ops.derivatives import first_derivative_only


def reference_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    shares: BatchShares,
    normalize: bool,
) -> Tensor:
    """The global batch's loss through torch's own autograd; memory grows as B G.

    Args:
        image_features: [B, D].
        text_features: [B, D].
        logit_scale: one element, s itself.
        shares: the ranks that hold the batch.
        normalize: whether the features still have to be normalised.

    Returns:
        The loss, with gradients W times those of the global loss (the mean over ranks undoes it).
    """
    dtype = torch.promote_types(image_features.dtype, torch.float32)
    logit_scale = logit_scale.to(dtype)
    image_features, text_features = image_features.to(dtype), text_features.to(dtype)
    if normalize:
        image_features, text_features = _unit(image_features), _unit(text_features)
    all_images, all_texts = image_features, text_features
    if shares.group_name is not None:
        all_images = _Gather.apply(image_features, shares)
        all_texts = _Gather.apply(text_features, shares)
    rows = image_features.shape[0]
    target = torch.arange(rows, device=image_features.device) + shares.first_column
    image_to_text = logit_scale * image_features @ all_texts.T
    text_to_image = logit_scale * text_features @ all_images.T
    # A sum over this rank's pairs by the mean number of pairs a rank.
    local = (
        F.cross_entropy(image_to_text, target, reduction="sum")
        + F.cross_entropy(text_to_image, target, reduction="sum")
    ) * (shares.world_size / (2 * shares.global_batch))
    if shares.group_name is None:
        return local
    # The value is the global loss on every rank; the gradient stays that of the local strips, which
    # the gather's reduce-scatter and the mean over ranks complete.
    mean = distributed.all_reduce(local.detach(), "sum", shares) / shares.world_size
    return mean + (local - local.detach())


def gather_rows(features: Tensor, shares: BatchShares) -> Tensor:
    """All ranks' rows in rank order.

    Args:
        features: [B, D], this rank's.
        shares: the ranks that hold the batch.

    Returns:
        [G, D]; its gradient is summed over ranks and goes to the rows' owners.
    """
    if shares.group_name is None:
        return features
    gathered: Tensor = _Gather.apply(features, shares)
    return gathered


def _unit(x: Tensor) -> Tensor:
    """Rows of length 1 in operations that torch can derive again and again; zero rows stay zero."""
    largest = x.detach().abs().amax(1, keepdim=True)
    x = x / largest.masked_fill(largest == 0, 1.0)
    square = (x * x).sum(1, keepdim=True)
    is_zero = square == 0
    return x * square.masked_fill(is_zero, 1.0).rsqrt().masked_fill(is_zero, 0.0)


class _Gather(torch.autograd.Function):
    """All ranks' rows in rank order; the backward sums what all ranks send to their owners."""

    @staticmethod
    def forward(ctx, features: Tensor, shares: BatchShares) -> Tensor:
        ctx.shares, ctx.rows = shares, features.shape[0]
        return distributed.finish_gather(distributed.start_gather(features, shares), shares)

    @staticmethod
    @first_derivative_only("clip_loss over several ranks", 'group="local" and one process')
    def backward(ctx, grad_gathered: Tensor) -> tuple[Tensor, None]:
        pending = distributed.start_reduce_scatter(grad_gathered.contiguous(), ctx.shares)
        return distributed.wait(pending, ctx.shares)[: ctx.rows], None
