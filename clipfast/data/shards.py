"""Find webdataset shards and say where each sample lies in them.

A shard is a plain tar. What training needs of it is four numbers per sample: offset and size of the
image and of the caption. They come from the shard's index (``X.idx`` beside ``X.tar``,
`clipfast.data.indexfile`) or, without one, from a walk over tar headers that reads 512 bytes per
member. Bytes are then fetched by offset: no tar stream, any order.
"""

from clipfast.data.fields import FIELDS, Entry, Fields, Sample
from clipfast.data.heads import counts
from clipfast.data.indexfile import (
    INDEX_COMMAND,
    INDEX_VERSION,
    has_index,
    index_path,
    write_index,
)
from clipfast.data.patterns import expand
from clipfast.data.scan import scan
from clipfast.data.shardfiles import ShardFiles
from clipfast.data.table import Table, count, read_table

__all__ = [
    "FIELDS",
    "INDEX_COMMAND",
    "INDEX_VERSION",
    "Entry",
    "Fields",
    "Sample",
    "ShardFiles",
    "Table",
    "count",
    "counts",
    "expand",
    "has_index",
    "index_path",
    "read_table",
    "scan",
    "write_index",
]
