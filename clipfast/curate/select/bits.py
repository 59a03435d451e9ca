"""Selections as tables of partial results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clipfast.curate.engine.parts import arrow
from clipfast.data.selection import ShardChoice


def choice_table(choice: ShardChoice) -> Any:
    """A table of one row: the fields of the choice."""
    pa = arrow()
    return pa.table(
        {
            "shard": pa.array([choice.shard], pa.string()),
            "samples": pa.array([choice.samples], pa.int64()),
            "mark": pa.array([choice.mark], pa.string()),
            "keep": pa.array([choice.keep], pa.binary()),
            "captions": pa.array([choice.captions], pa.binary()),
            "captions_of": pa.array([choice.captions_of], pa.string()),
            "weights": pa.array([choice.weights], pa.binary()),
        }
    )


def choices_of(tables: Sequence[Any]) -> list[ShardChoice]:
    """What ``choice_table`` was made of.

    Args:
        tables: one of each shard, in any order.
    """
    return [ShardChoice(**row) for table in tables for row in table.to_pylist()]
