"""Runs pure steps over shards: on processes of this machine, or on a Ray cluster.

A step makes one table of one item. The table is a file of a name that item and step decide. So work
that was interrupted goes on, and neither the number of workers nor their kind changes a byte.
"""

from clipfast.curate.engine.job import run
from clipfast.curate.engine.parts import read_table, write_table
from clipfast.curate.engine.step import Item, Step

__all__ = ["Item", "Step", "read_table", "run", "write_table"]
