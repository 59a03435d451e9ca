"""Bytes that a rank needs at its peak, by part; and the largest micro-batch that they leave."""

from dataclasses import dataclass, replace

import torch

from clipfast.data.loader import kept_on
from clipfast.engine.plan import RunPlan
from clipfast.engine.recomputation import HOLES, Count, activation_peak, has_holes
from clipfast.engine.state_bytes import StateBytes, state_bytes
from clipfast.models import CLIP

# Micro-batches that the decoder has ready before they are asked for.
DECODED_AHEAD = 2


@dataclass(frozen=True)
class RankBytes:
    """What a rank holds at its peak, counted.

    Attributes:
        states: weights, gradients, what the optimizer keeps, buckets.
        activations: of one forward and backward pass, at its peak.
        loss: features of all ranks, logits and gradients of features.
        features: of the whole share and their gradients, where it is encoded in micro-batches.
        images: of a micro-batch's pairs, in the type that the towers read.
        decoder: crops in bytes, of a micro-batch, of those that are decoded ahead, and of what is
            kept for a second pass.
        flattened: of gradients, laid in a row for their reduction once activations are gone.
        holes: what a CPU's heap grows beyond what is alive, see `recomputation.HOLES`.
        process: programs and libraries, where they were measured.
    """

    states: StateBytes
    activations: int
    loss: int
    features: int
    images: int
    decoder: int
    flattened: int = 0
    holes: int = 0
    process: int = 0

    @property
    def passing(self) -> int:
        """The peak of what a step makes and lets go: in micro-batches no activation is alive while
        the loss is computed."""
        if self.features:
            return self.features + max(self.activations, self.loss, self.flattened)
        return max(self.activations + self.loss, self.flattened)

    @property
    def total(self) -> int:
        """All of them."""
        live = self.states.total + self.passing + self.images + self.decoder
        return live + self.holes + self.process


def rank_bytes(
    plan: RunPlan,
    caption_tokens: int,
    states: StateBytes | None = None,
    count: Count = activation_peak,
) -> RankBytes:
    """Count what a rank of a run needs, without making any of it.

    Args:
        plan: of the run, its mode of recomputation known.
        caption_tokens: of every caption, start and end included.
        states: as ``rank_states`` counts them, where the caller has.
        count: of activations.
    """
    width, is_cut = plan.architecture.embed_dim, plan.micro_batches > 1
    # Without a text tower a pair is two images.
    image = 3 * plan.architecture.vision.image_size**2 * (1 if plan.architecture.text else 2)
    planned = plan.process.planned
    most = kept_on(plan.process.device, planned.memory if planned else None) if is_cut else 0
    kept = min(plan.local_batch * image, most)
    pixels = plan.micro_batch * image
    states = states or rank_states(plan)
    counted = RankBytes(
        states=states,
        activations=count(plan, caption_tokens),
        loss=plan.objective.peak_bytes(
            plan.local_batch, plan.config.batch_size, width, plan.dtype, plan.process.device
        ),
        # Of both towers: as they came, widened, and their gradients.
        features=2 * plan.local_batch * width * (plan.dtype.itemsize + 8) * is_cut,
        images=pixels * plan.dtype.itemsize,
        decoder=pixels * (1 + DECODED_AHEAD) + kept,
        # At stage 0 DeepSpeed copies them into one tensor, whatever the bucket's size says.
        flattened=states.gradients * (plan.stage == 0 and plan.process.world_size > 1),
    )
    if not has_holes(plan):
        return counted
    goes = counted.passing + states.gradients + states.passing
    return replace(counted, holes=int(HOLES * goes))


def rank_states(plan: RunPlan) -> StateBytes:
    """What `state_bytes` counts, for a model that need not be here."""
    with torch.device("meta"):
        return state_bytes(plan, CLIP(plan.architecture))


def largest_micro_batch(
    plan: RunPlan, available: int, caption_tokens: int, count: Count = activation_peak
) -> int | None:
    """The largest micro-batch with which a rank stays within its memory.

    Args:
        plan: of the run, its mode of recomputation known.
        available: bytes that a rank may take in all.
        caption_tokens: of every caption, start and end included.
        count: of activations.

    Returns:
        A divisor of the rank's share, up to the whole of it; None where not even one pair fits.
    """
    local = plan.local_batch
    sizes = [m for m in range(local, 0, -1) if local % m == 0]

    def needed(micro_batch: int, states: StateBytes | None = None) -> int:
        return rank_bytes(plan.with_micro_batch(micro_batch), caption_tokens, states, count).total

    # The whole share needs no sums over micro-batches: it may fit where half of it does not.
    if needed(local) <= available:
        return local
    states = rank_states(plan.with_micro_batch(1))
    # Below it a larger micro-batch needs more: bisect the divisors.
    low, high = 1, len(sizes)
    while low < high:
        middle = (low + high) // 2
        if needed(sizes[middle], states) <= available:
            high = middle
        else:
            low = middle + 1
    return sizes[low] if low < len(sizes) else None
