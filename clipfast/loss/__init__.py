"""The symmetric contrastive loss over the global batch, as a function and as a drop-in module."""

from clipfast.loss.contrastive import clip_loss
from clipfast.loss.module import ClipLoss

__all__ = ["ClipLoss", "clip_loss"]
