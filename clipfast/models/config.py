"""Where version 0.1 kept what is now in `architecture` and `catalogue`."""

from clipfast.models.catalogue import get_config
from clipfast.models.recompute import Recompute as Checkpoint

__all__ = ["Checkpoint", "get_config"]
