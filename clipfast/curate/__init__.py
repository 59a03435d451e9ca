"""Chooses what a model is trained on, without writing a shard anew: ``python -m clipfast.curate``.

Each step is a pure function over shards, or over pieces of text, whose partial results are files
that merge (`clipfast.curate.engine`). The end is a selection (`clipfast.data.selection`), a file of
bits beside the shards that the loaders obey.
"""

from clipfast.curate.command import main

__all__ = ["main"]
