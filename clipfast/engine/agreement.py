"""What rank 0 finds, does or fails at, known to every rank."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from clipfast.engine.config import ConfigError
from clipfast.engine.launch import Process

_Made = TypeVar("_Made")


def from_main(process: Process, make: Callable[[], _Made]) -> _Made:
    """Let rank 0 make something, and hand it to all. A collective.

    Args:
        process: this rank.
        make: called on rank 0 alone; what it returns can be pickled.

    Returns:
        What it returned, on every rank.

    Raises:
        ConfigError: on every rank, where it raised one.
        OSError: likewise, without its traceback on other ranks.
    """
    shared: list[Any] = [None]
    if process.is_main:
        try:
            shared = [(make(), None)]
        except (ConfigError, OSError) as error:
            shared = [(None, error)]
    dist.broadcast_object_list(shared)
    made, failure = shared[0]
    if failure is not None:
        raise failure
    value: _Made = made
    return value
