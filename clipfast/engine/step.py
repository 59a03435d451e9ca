"""One optimizer step, whole or in micro-batches, with the gradients of the global batch.

Shapes: B local batch, M micro-batch, k = B / M, D embedding width.
"""

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from clipfast.data import ImageTextBatch
from clipfast.engine.deepspeed.half_stage0 import loss_factor
from clipfast.loss import Objective
from clipfast.loss.objectives import CONTRASTIVE
from clipfast.models import frozen_statistics


def train_step(
    engine: Any, batch: ImageTextBatch, micro_batches: int, objective: Objective = CONTRASTIVE
) -> tuple[Tensor, Tensor]:
    """Forward, loss, backward, update.

    With k > 1 micro-batches the features are first computed without a graph, the loss of the whole
    batch gives their gradients dU and dV, and each micro-batch is encoded again with a graph to
    carry its slice of them:

        sum over m of  J_m^T (dU_m, dV_m)  =  J^T (dU, dV)

    which is the gradient of the whole batch, not an average of smaller batches' losses. Batch
    statistics are those of a micro-batch in both passes; the running ones move once, in the first.

    Args:
        engine: a DeepSpeed engine around a CLIP model, its accumulation set to ``micro_batches``.
        batch: this rank's share.
        micro_batches: k, divides B.
        objective: what is minimised; the model has its scalars.

    Returns:
        The global batch's loss and the logit scale it was computed with, detached scalars.
    """
    if micro_batches == 1:
        texts = []
        image_features, _, logit_scale, *scalars = engine(
            batch.images,
            batch.tokens,
            lengths=batch.lengths,
            # On a GPU a gather of the texts is on its way while the image tower runs.
            on_text_features=lambda features: texts.append(
                objective.prepare(features, _batch_sizes(features))
            ),
        )
        loss = objective.loss(
            image_features,
            texts.pop(),
            logit_scale,
            *scalars,
            batch_sizes=_batch_sizes(image_features),
        )
        engine.backward(loss * loss_factor(engine))
        engine.step()
        return loss.detach(), logit_scale.detach()

    images = batch.images.chunk(micro_batches)
    tokens = batch.tokens.chunk(micro_batches)
    lengths = batch.lengths.chunk(micro_batches)
    generators = _RandomStates(batch.images.device, micro_batches)
    features = []
    with torch.no_grad():
        for m in range(micro_batches):
            generators.save(m)
            features.append(engine(images[m], tokens[m], lengths=lengths[m]))
    loss, grad_images, grad_texts, grad_scalars = _feature_gradients(features, objective)
    for m in range(micro_batches):
        generators.restore(m)
        with frozen_statistics():
            image_features, text_features, *scalars = engine(
                images[m], tokens[m], lengths=lengths[m]
            )
            # Its gradient with respect to the features is the slice of dU and dV itself.
            carrier = (
                (image_features.float() * grad_images[m]).sum()
                + (text_features.float() * grad_texts[m]).sum()
                + sum(
                    (scalar.float() * grad).sum() / micro_batches
                    for scalar, grad in zip(scalars, grad_scalars, strict=True)
                )
            )
            engine.backward(carrier * loss_factor(engine), scale_wrt_gas=False)
            engine.step()
    return loss, features[0][2].detach()


def _feature_gradients(
    features: list[tuple[Tensor, ...]], objective: Objective
) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The loss of all micro-batches together, dU and dV cut into their slices again, and the
    gradients of the scalars."""
    k = len(features)
    images = torch.cat([f[0] for f in features]).float().requires_grad_()
    texts = torch.cat([f[1] for f in features]).float().requires_grad_()
    scalars = [scalar.float().detach().requires_grad_() for scalar in features[0][2:]]
    # The features are widened so that dU and dV are not rounded before they are carried; the loss
    # still multiplies them in the half precision that they came in.
    half = features[0][0].dtype
    is_half = half != torch.float32
    autocast = torch.autocast(images.device.type, half if is_half else None, enabled=is_half)
    with torch.enable_grad(), autocast:
        sizes = _batch_sizes(texts)
        prepared = objective.prepare(texts, sizes)
        loss = objective.loss(images, prepared, *scalars, batch_sizes=sizes)
        grad_images, grad_texts, *grad_scalars = torch.autograd.grad(
            loss, (images, texts, *scalars), materialize_grads=True
        )
    return loss.detach(), grad_images.chunk(k), grad_texts.chunk(k), tuple(grad_scalars)


def _batch_sizes(features: Tensor) -> list[int]:
    """Pairs on every rank: equal, since the loader drops the last incomplete batch."""
    return [features.shape[0]] * dist.get_world_size()


class _RandomStates:
    """The generators' states before each micro-batch, so that its second pass repeats the first."""

    def __init__(self, device: torch.device, count: int) -> None:
        self._device = device
        self._states: list[tuple[Tensor, Tensor | None] | None] = [None] * count

    def save(self, m: int) -> None:
        on_gpu = self._device.type == "cuda"
        self._states[m] = (
            torch.get_rng_state(),
            torch.cuda.get_rng_state(self._device) if on_gpu else None,
        )

    def restore(self, m: int) -> None:
        host, device = cast(tuple[Tensor, Tensor | None], self._states[m])
        torch.set_rng_state(host)
        if device is not None:
            torch.cuda.set_rng_state(device, self._device)
