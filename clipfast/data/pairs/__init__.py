"""Pairs of a picture and its distortion, from the same shards as pairs of a picture and a caption.

A model without a text tower trains on them (`Architecture.text` is None): it learns that both are
one picture, and all others of the batch are not.
"""

from clipfast.data.pairs.distortions import distort
from clipfast.data.pairs.loader import EvalPairLoader, TrainPairLoader
from clipfast.data.pairs.views import squashed, two_views

__all__ = ["EvalPairLoader", "TrainPairLoader", "distort", "squashed", "two_views"]
