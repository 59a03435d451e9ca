"""The loss over the global batch from one strip of logits a rank, and its gradients.

Rank r gathers the texts only and computes its B x G strip S once. Row sums are complete; column
sums need one all-reduce of maxima and one of sums. In backward the strip gives the gradient of the
rank's images, and a partial gradient of all texts that one reduce-scatter completes.

    start_texts (forward)    prepare texts, start their gather               | hides behind the
    strip_loss  (forward)    wait, statistics, all-reduces, loss             | image tower
    strip_loss  (backward)   gradients of the strip, start the reduce-scatter, gradient of images
    start_texts (backward)   wait, gradient of texts                         | same, in backward

autograd runs the node that was made last first: where the image tower runs between the two, its
backward runs while the reduce-scatter is on its way.

Pairs are kept out of the products (clipfast/ops/contrastive) and come in here, from unrounded
features. With d_i = S_ii and z_i = log(sum over j != i of exp S_ij) - d_i,

    lse_i = d_i + softplus(z_i)                            # for rows and for columns
    loss  = sum_i softplus(z_row_i) + softplus(z_col_i)    # over 2 G
    P_ii  = -(sigmoid(z_row_i) + sigmoid(z_col_i))

in which nothing cancels when a batch is fitted and its loss tends to zero.

Legend: B local batch, G global batch, D width, W ranks.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from clipfast.loss import distributed, workspace
from clipfast.loss.distributed import BatchShares
from clipfast.loss.tracing import holds_values, no_autocast
from clipfast.ops.contrastive import Choice, operators
from clipfast.ops.derivatives import first_derivative_only

_first_derivative_only = first_derivative_only("clip_loss", 'impl="reference", on one process')
_HALF = torch.float16
# Norms between which products of raw features stay well inside fp32.
_SAFE_NORMS = (2.0**-40, 2.0**40)


@dataclasses.dataclass(frozen=True)
class LossPlan:
    """What the loss of a batch does, apart from its tensors."""

    choice: Choice
    shares: BatchShares
    normalize: bool
    keep: bool | None  # whether logits are kept for backward; None: where they fit
    workspace_bytes: int | None  # None: by the device

    def settled(self, features: Tensor) -> LossPlan:
        """The plan whose `keep` and `workspace_bytes` are no longer None.

        To be asked when the towers have run: on a GPU what their activations leave counts.
        """
        room = self.workspace_bytes
        if room is None:
            room = workspace.budget(features.device)
        keep = self.keep
        if keep is None:
            is_half = self.choice.impl in ("cuda", "triton") and self.choice.work_dtype == _HALF
            logit_bytes = 2 if is_half else 8 if features.dtype == torch.float64 else 4
            keep = features.shape[0] * self.shares.global_batch * logit_bytes <= room
        return LossPlan(self.choice, self.shares, self.normalize, keep, room)


def start_texts(text_features: Tensor, plan: LossPlan) -> tuple[Tensor, ...]:
    """Prepare the texts and start gathering them.

    Returns:
        What `strip_loss` takes as `texts`.
    """
    return _StartTexts.apply(text_features, plan)


def strip_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor,
    texts: tuple[Tensor, ...],
    plan: LossPlan,
) -> Tensor:
    """The global batch's loss, the same on every rank.

    Args:
        image_features: [B, D].
        text_features: [B, D], as given to `start_texts`.
        logit_scale: [1], of the type that sums are held in.
        texts: the result of `start_texts`.
        plan: the same.

    Returns:
        A scalar. Its gradients are W times those of the global loss, which the mean over ranks
        undoes.
    """
    inputs = (image_features, logit_scale, *texts)
    plan = plan.settled(image_features)
    keep = bool(plan.keep) and torch.is_grad_enabled() and any(t.requires_grad for t in inputs)
    return _StripLoss.apply(image_features, text_features.detach(), logit_scale, plan, keep, *texts)


class _StartTexts(torch.autograd.Function):
    """Outputs: work features and vectors of all ranks, on their way, and this rank's inverse norms
    (none with a gradient); then five tickets.

    A ticket holds nothing. It is the way by which the strip's backward hands over what the texts'
    gradient is made of: the reduce-scattered partial, and the images' side of the pairs.
    """

    @staticmethod
    def forward(ctx, text_features: Tensor, plan: LossPlan) -> tuple[Tensor, ...]:
        work, inverse_norm, factor, norm = _prepare(text_features, plan)
        if plan.shares.is_assumed:
            zero = distributed.require_equal_batches(text_features, plan.shares)
            factor, norm = factor + zero, norm + zero
        gathered, vectors = distributed.start_gather_of_both(
            work, factor if plan.normalize else norm, plan.shares
        )
        if gathered is text_features:
            # An input cannot be handed out: nothing was copied, nothing is on its way.
            gathered = text_features.new_empty(0)
        ctx.plan = plan
        ctx.save_for_backward(text_features, inverse_norm, factor)
        ctx.mark_non_differentiable(gathered, vectors, inverse_norm)
        zero = factor.new_zeros(())
        batch, width = text_features.shape
        tickets = (
            zero.expand(max(plan.shares.sizes), width),
            zero.to(text_features.dtype).expand(text_features.shape),
            zero.expand(batch),
            zero.expand(batch),
            zero.expand(1),
        )
        return gathered, vectors, inverse_norm, *tickets

    @staticmethod
    @_first_derivative_only
    def backward(ctx, _0, _1, _2, column_grad, images, image_inverse_norm, diagonal, coefficient):
        text_features, inverse_norm, factor = ctx.saved_tensors
        column_grad = distributed.wait(column_grad, ctx.plan.shares)
        grad, _ = operators(ctx.plan.choice.impl).finish(
            column_grad[: text_features.shape[0]],
            text_features,
            images,
            inverse_norm,
            image_inverse_norm,
            factor,
            diagonal,
            coefficient,
            ctx.plan.normalize,
        )
        return grad, None


class _StripLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor,
        plan: LossPlan,
        keep: bool,
        gathered: Tensor,
        vectors: Tensor,
        text_inverse_norm: Tensor,
        *tickets: Tensor,
    ) -> Tensor:
        ops, shares = operators(plan.choice.impl), plan.shares
        work, inverse_norm, factor, norm = _prepare(image_features, plan)
        cosines = ops.diagonal(image_features, text_features, inverse_norm, text_inverse_norm)
        texts = text_features if gathered.numel() == 0 else gathered
        texts, vectors = distributed.finish_gather_of_both(texts, vectors, shares, work.dtype)
        column_factor = vectors if plan.normalize else torch.ones_like(vectors)
        bound = logit_scale.abs()
        if not plan.normalize:
            bound = bound * norm.max() * vectors.max()
        strip = (work, texts, factor, column_factor, logit_scale, bound)
        row_max, row_sum, column_max, column_sum, shift, kept = ops.statistics(
            *strip, shares.first_column, keep, plan.workspace_bytes
        )
        loss, diagonal, row_lse, column_lse = _combine(
            (row_max, row_sum), (column_max, column_sum), logit_scale * cosines, shares
        )
        ctx.plan = plan
        ctx.save_for_backward(
            image_features,
            text_features,
            inverse_norm,
            text_inverse_norm,
            diagonal,
            # Ties what backward returns to the texts: it depends on them.
            tickets[-1],
            *strip,
            shift,
            row_lse,
            column_lse,
            kept,
        )
        return loss

    @staticmethod
    @_first_derivative_only
    def backward(ctx, grad_loss: Tensor):
        plan, shares = ctx.plan, ctx.plan.shares
        images, texts, inverse_norm, text_inverse_norm, diagonal, _, *saved = ctx.saved_tensors
        factor, logit_scale = saved[2], saved[4]
        want_images, _, want_scale = ctx.needs_input_grad[:3]
        want_rows, want_columns = want_images or want_scale, ctx.needs_input_grad[8]
        ops = operators(plan.choice.impl)
        # Backward may be called under autocast, which would round the plain form's products.
        with no_autocast(images.device):
            row_grad, column_grad = ops.gradients(
                *saved, shares.first_column, want_rows, want_columns, plan.workspace_bytes
            )
        # The mean over ranks that follows divides by W.
        per_pair = grad_loss * (shares.world_size / (2 * shares.global_batch))
        coefficient = per_pair * logit_scale
        grad_images = grad_scale = None
        tickets: tuple[Tensor | None, ...] = (None,) * 5
        if want_columns:
            pending = distributed.start_reduce_scatter(column_grad, shares)
            if not torch.compiler.is_compiling() and torch.is_anomaly_enabled():
                # Anomaly detection reads every gradient as it is handed over.
                pending = distributed.wait(pending, shares)
            tickets = (pending, images, inverse_norm, diagonal, coefficient)
        if want_rows:
            grad_images, dot = ops.finish(
                row_grad,
                images,
                texts,
                inverse_norm,
                text_inverse_norm,
                factor,
                diagonal,
                coefficient,
                plan.normalize,
            )
            grad_scale = (per_pair * dot.sum()).reshape(1) if want_scale else None
        return grad_images if want_images else None, None, grad_scale, *(None,) * 5, *tickets


def _prepare(features: Tensor, plan: LossPlan) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(work features, inverse norms, factors, norms) of this rank's features."""
    ops = operators(plan.choice.impl)
    work_dtype = plan.choice.work_dtype
    if work_dtype is None and plan.normalize and not holds_values(features):
        # Nobody can look at norms: work on a scaled copy in any case.
        work_dtype = features.dtype
    prepared = ops.prepare(features, plan.normalize, work_dtype)
    if work_dtype is not None:
        return prepared
    _, inverse_norm, factor, norm = prepared
    if plan.normalize and not _are_safe(inverse_norm):
        return ops.prepare(features, True, features.dtype)
    return features, inverse_norm, factor, norm


def _are_safe(inverse_norms: Tensor) -> bool:
    """Whether products of features so long can neither leave fp32's range nor lose digits."""
    if inverse_norms.device.type != "cpu":
        return True  # reading them would make the host wait
    is_safe = (inverse_norms >= 1 / _SAFE_NORMS[1]) & (inverse_norms <= 1 / _SAFE_NORMS[0])
    return bool((is_safe | ~(inverse_norms > 0)).all())


def _combine(
    rows: tuple[Tensor, Tensor],
    columns: tuple[Tensor, Tensor],
    pairs: Tensor,
    shares: BatchShares,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(loss, P_ii [B], row_lse [B], column_lse [G]) from the strip's sums without its pairs.

    Args:
        rows: (maximum, sum relative to it) over each row, [B].
        columns: the same over this rank's part of each column, [G].
        pairs: S_ii [B].
        shares: the ranks.
    """
    z_row = rows[0] + rows[1].log() - pairs
    row_terms = _softplus(z_row)
    column_max, column_sum = columns
    all_pairs, total = pairs, row_terms.sum()
    mine = slice(shares.first_column, shares.first_column + pairs.shape[0])
    if shares.group_name is not None:
        # A rank without a term in a column has no say in its maximum.
        local_max = torch.where(column_sum == 0, float("-inf"), column_max)
        column_max = distributed.all_reduce(local_max, "max", shares)
        column_max = torch.where(column_max == float("-inf"), 0.0, column_max)
        column_sum = column_sum * (local_max - column_max).exp()
        all_pairs = F.pad(pairs, (mine.start, column_sum.shape[0] - mine.stop))
        message = torch.cat([column_sum, all_pairs, total.reshape(1)])
        message = distributed.all_reduce(message, "sum", shares)
        column_sum, all_pairs, total = message.split([shares.global_batch] * 2 + [1])
    z_column = column_max + column_sum.log() - all_pairs
    column_terms = _softplus(z_column)
    loss = (total.sum() + column_terms.sum()) / (2 * shares.global_batch)
    diagonal = -(z_row.sigmoid() + z_column[mine].sigmoid())
    return loss, diagonal, pairs + row_terms, all_pairs + column_terms


def _softplus(z: Tensor) -> Tensor:
    """log(1 + exp z), to full precision at both ends (torch's own cuts over to z at 20)."""
    return torch.logaddexp(z, torch.zeros_like(z))
