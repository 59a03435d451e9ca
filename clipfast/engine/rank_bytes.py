"""Bytes that a rank needs at its peak, by part; and the largest micro-batch that they leave."""

from dataclasses import dataclass

import torch

from clipfast.engine.plan import RunPlan
from clipfast.engine.recomputation import COMPILED_GROWTH
from clipfast.engine.state_bytes import StateBytes, state_bytes
from clipfast.models import CLIP
from clipfast.models.activations import activation_bytes


@dataclass(frozen=True)
class RankBytes:
    """What a rank holds at its peak, counted.

    Attributes:
        states: weights, gradients, what the optimizer keeps, buckets.
        activations: of one forward and backward pass, at its peak.
        loss: features of all ranks, logits and gradients of features.
        features: of the whole share and their gradients, where it is encoded in micro-batches.
        images: decoded, of the share that is trained on.
    """

    states: StateBytes
    activations: int
    loss: int
    features: int
    images: int

    @property
    def passing(self) -> int:
        """The peak of what a step makes and lets go: in micro-batches no activation is alive while
        the loss is computed."""
        if self.features:
            return self.features + max(self.activations, self.loss)
        return self.activations + self.loss

    @property
    def total(self) -> int:
        """All of them."""
        return self.states.total + self.passing + self.images


def rank_bytes(plan: RunPlan, caption_tokens: int, states: StateBytes | None = None) -> RankBytes:
    """Count what a rank of a run needs, without making any of it.

    Args:
        plan: of the run, its mode of recomputation known.
        caption_tokens: of every caption, start and end included.
        states: as ``rank_states`` counts them, where the caller has.
    """
    activations = activation_bytes(
        plan.architecture,
        plan.micro_batch,
        plan.dtype,
        plan.recompute,
        caption_tokens=caption_tokens,
        device=plan.process.counted_on,
    ).peak
    if plan.compile:
        activations = int(activations * COMPILED_GROWTH)
    width, is_cut = plan.architecture.embed_dim, plan.micro_batches > 1
    size = plan.architecture.vision.image_size
    return RankBytes(
        states=states or rank_states(plan),
        activations=activations,
        loss=plan.objective.peak_bytes(
            plan.local_batch, plan.config.batch_size, width, plan.dtype, plan.process.device
        ),
        # Of both towers: as they came, widened, and their gradients.
        features=2 * plan.local_batch * width * (plan.dtype.itemsize + 8) * is_cut,
        images=plan.local_batch * 3 * size**2 * plan.dtype.itemsize,
    )


def rank_states(plan: RunPlan) -> StateBytes:
    """What `state_bytes` counts, for a model that need not be here."""
    with torch.device("meta"):
        return state_bytes(plan, CLIP(plan.architecture))


def largest_micro_batch(plan: RunPlan, available: int, caption_tokens: int) -> int | None:
    """The largest micro-batch with which a rank stays within its memory.

    Args:
        plan: of the run, its mode of recomputation known.
        available: bytes that a rank may take in all.
        caption_tokens: of every caption, start and end included.

    Returns:
        A divisor of the rank's share, up to the whole of it; None where not even one pair fits.
    """
    local = plan.local_batch
    sizes = [m for m in range(local, 0, -1) if local % m == 0]

    # The whole share needs no sums over micro-batches: it may fit where half of it does not.
    if rank_bytes(plan.with_micro_batch(local), caption_tokens).total <= available:
        return local
    states = rank_states(plan.with_micro_batch(1))

    def needed(micro_batch: int) -> int:
        return rank_bytes(plan.with_micro_batch(micro_batch), caption_tokens, states).total

    # Below it a larger micro-batch needs more: bisect the divisors.
    low, high = 1, len(sizes)
    while low < high:
        middle = (low + high) // 2
        if needed(sizes[middle]) <= available:
            high = middle
        else:
            low = middle + 1
    return sizes[low] if low < len(sizes) else None
