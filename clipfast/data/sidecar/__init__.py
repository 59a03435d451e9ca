"""Captions that stand in tables beside the shards: one Parquet or CSV file per shard, or for all.

A table has a row per caption, with the key of its sample. Shards and tables are joined once
(``join``): the result is a file of captions in the order of the shards' rows (``joined``), which
all processes of a machine map into memory. It is known by what it was made of, and found again by
the next run.
"""

from clipfast.data.sidecar.bound import Captions, bind, sidecars_of
from clipfast.data.sidecar.options import Sidecar

__all__ = ["Captions", "Sidecar", "bind", "sidecars_of"]
