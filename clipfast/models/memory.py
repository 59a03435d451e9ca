"""Where version 0.1 kept what is now in `activations`."""

from clipfast.models.activations import MODES, activation_bytes
from clipfast.models.activations import fastest_recompute as fastest_checkpoint

__all__ = ["MODES", "activation_bytes", "fastest_checkpoint"]
