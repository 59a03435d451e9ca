"""One optimizer step, whole or in micro-batches, with the gradients of the global batch.

Shapes: B local batch, M micro-batch, k = B / M, D embedding width.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from clipfast.data import ImageTextBatch
from clipfast.engine.deepspeed.half_stage0 import loss_factor
from clipfast.engine.progress import mark
from clipfast.loss import Objective
from clipfast.loss.objectives import CONTRASTIVE
from clipfast.models import frozen_statistics
from clipfast.models.shared_norm import settle_statistics


def train_step(
    engine: Any,
    batch: ImageTextBatch,
    micro_batches: int,
    objective: Objective = CONTRASTIVE,
    keep_graphs: int = 0,
) -> tuple[Tensor, Tensor]:
    """Forward, loss, backward, update.

    With k > 1 micro-batches the features are first computed, the loss of the whole batch gives
    their gradients dU and dV, and each micro-batch carries its slice of them:

        sum over m of  J_m^T (dU_m, dV_m)  =  J^T (dU, dV)

    which is the gradient of the whole batch, not an average of smaller batches' losses. The first
    `keep_graphs` of them keep their graphs for that; the others are encoded without one and then
    again: one forward pass more beside the three that a forward and a backward cost. Gradients are
    the same bits for any number of kept graphs. Batch statistics are those of a micro-batch in
    both passes; the running ones move once, in the first.

    Args:
        engine: a DeepSpeed engine around a CLIP model, its accumulation set to ``micro_batches``.
        batch: this rank's share; its images are asked for by micro-batch alone, once per pass.
        micro_batches: k, divides B.
        objective: what is minimised; the model has its scalars.
        keep_graphs: micro-batches that are encoded once.

    Returns:
        The global batch's loss and the logit scale it was computed with, detached scalars.
    """
    mark("forward")
    again = micro_batches > 1 and keep_graphs < micro_batches
    parts = batch.parts(micro_batches, passes=2 if again else 1)
    if micro_batches == 1:
        loss, logit_scale = _whole(engine, parts[0], objective)
    else:
        loss, logit_scale = _in_parts(engine, parts, objective, keep_graphs)
    settle_statistics(engine.module)
    return loss, logit_scale


def _whole(engine: Any, batch: ImageTextBatch, objective: Objective) -> tuple[Tensor, Tensor]:
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
    mark("backward")
    engine.backward(loss * loss_factor(engine))
    mark("update")
    engine.step()
    return loss.detach(), logit_scale.detach()


def _in_parts(
    engine: Any, parts: Sequence[ImageTextBatch], objective: Objective, keep_graphs: int
) -> tuple[Tensor, Tensor]:
    micro_batches = len(parts)
    generators = _RandomStates(micro_batches)
    features: list[tuple[Tensor, ...]] = []
    # The first ones: their backward passes come first, so that none of them is left where a
    # micro-batch is encoded again.
    kept: list[tuple[Tensor, ...] | None] = [None] * micro_batches
    for m in range(micro_batches):
        mark("forward")
        part = parts[m]
        generators.save(m, part.images.device)
        with torch.set_grad_enabled(m < keep_graphs):
            encoded = engine(part.images, part.tokens, lengths=part.lengths)
        if m < keep_graphs:
            kept[m] = encoded
        features.append(tuple(each.detach() for each in encoded))
        # The next one is decoded without this one in memory.
        del part, encoded
    mark("loss")
    loss, grad_images, grad_texts, grad_scalars = _feature_gradients(features, objective)
    logit_scale = features[0][2]
    features.clear()
    for m in range(micro_batches):
        mark("forward")
        with frozen_statistics():
            image_features, text_features, *scalars = kept[m] or _encode_again(
                engine, parts, m, generators
            )
            kept[m] = None
            # Its gradient with respect to the features is the slice of dU and dV itself.
            carrier = (
                (image_features.float() * grad_images[m]).sum()
                + (text_features.float() * grad_texts[m]).sum()
                + sum(
                    (scalar.float() * grad).sum() / micro_batches
                    for scalar, grad in zip(scalars, grad_scalars, strict=True)
                )
            )
            mark("backward")
            engine.backward(carrier * loss_factor(engine), scale_wrt_gas=False)
            mark("update")
            engine.step()
    return loss, logit_scale


def _encode_again(
    engine: Any, parts: Sequence[ImageTextBatch], m: int, generators: "_RandomStates"
) -> tuple[Tensor, ...]:
    part = parts[m]
    generators.restore(m)
    encoded: tuple[Tensor, ...] = engine(part.images, part.tokens, lengths=part.lengths)
    return encoded


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

    def __init__(self, count: int) -> None:
        self._states: list[tuple[Tensor, torch.device, Tensor | None] | None] = [None] * count

    def save(self, m: int, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self._states[m] = (
            torch.get_rng_state(),
            device,
            torch.cuda.get_rng_state(device) if on_gpu else None,
        )

    def restore(self, m: int) -> None:
        host, device, ours = cast(tuple[Tensor, torch.device, Tensor | None], self._states[m])
        torch.set_rng_state(host)
        if ours is not None:
            torch.cuda.set_rng_state(ours, device)
