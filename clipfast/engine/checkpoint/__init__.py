"""A run's checkpoints: saved whole or not at all, verified before they are loaded.

``folder`` puts them in place, aside and away. ``choosing`` finds the one to go on from, ``saving``
writes them. ``Checkpoints`` is what a run knows of all three.
"""

from clipfast.engine.checkpoint.choosing import LATEST, Chosen
from clipfast.engine.checkpoint.of_run import Checkpoints
from clipfast.engine.checkpoint.saving import SaveFailed

__all__ = ["LATEST", "Checkpoints", "Chosen", "SaveFailed"]
