"""The order in which samples are read: a pure function of (seed, epoch), never of the ranks.

``EpochOrder`` reads one set of shards, each sample once per epoch, and ``WeightedOrder`` as often
as its weight says. ``MixedOrder`` reads several sources, each as often as it is given a share. All
are an ``Order``, which is all that the loaders know of them.
"""

from clipfast.data.order.epoch import EpochOrder
from clipfast.data.order.mixed import MixedOrder
from clipfast.data.order.refs import Order, SampleRefs
from clipfast.data.order.shares import Share
from clipfast.data.order.weighted import WeightedOrder

__all__ = ["EpochOrder", "MixedOrder", "Order", "SampleRefs", "Share", "WeightedOrder"]
