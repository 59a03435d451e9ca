"""The symmetric contrastive loss over the global batch, as a function and as a drop-in module."""

from clipfast.loss.contrastive import (
    GatheredTexts,
    available_impls,
    chosen_impl,
    clip_loss,
    gather_texts,
)
from clipfast.loss.module import ClipLoss
from clipfast.loss.objectives import (
    Objective,
    get_objective,
    list_objectives,
    register_objective,
)

__all__ = [
    "ClipLoss",
    "GatheredTexts",
    "Objective",
    "available_impls",
    "chosen_impl",
    "clip_loss",
    "gather_texts",
    "get_objective",
    "list_objectives",
    "register_objective",
]
