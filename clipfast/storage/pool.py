"""The threads that ask stores: so many requests of a process are under way at a time."""

import contextvars
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Any, TypeVar

T = TypeVar("T")

_lock = Lock()
_pools: dict[tuple[str, int], ThreadPoolExecutor] = {}


def submit(
    in_flight: int, act: Callable[..., T], *arguments: Any, name: str = "store"
) -> "Future[T]":
    """Start a request on one of the threads that all storages of this process share.

    Whoever gives up a wait (`clipfast.storage.patience.unwanted`) is heard there too.

    Args:
        in_flight: threads.
        act: makes one request; it must not wait for another one of this pool.
        arguments: for `act`.
        name: of the pool; calls that ask for many ranges have one of their own.
    """
    with _lock:
        if (name, in_flight) not in _pools:
            _pools[name, in_flight] = ThreadPoolExecutor(
                in_flight, thread_name_prefix=f"clipfast-{name}"
            )
        pool = _pools[name, in_flight]
    return pool.submit(contextvars.copy_context().run, act, *arguments)
