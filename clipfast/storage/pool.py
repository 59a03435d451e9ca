"""The threads that ask stores: so many requests of a process are under way at a time."""

import contextvars
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from threading import Lock
from typing import Any, TypeVar

from clipfast.storage.failures import UnreachableError
from clipfast.storage.patience import unwanted

T = TypeVar("T")

# Seconds between two looks whether anybody still wants an answer.
_LOOK = 0.2

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


def result_of(future: "Future[T]") -> T:
    """What a request gave; no more is waited for than somebody wants it.

    A request that a store never answers ends by its own time limit, on its own thread.

    Raises:
        UnreachableError: nobody wants it any more (`clipfast.storage.patience.unwanted`).
    """
    given_up = unwanted.get()
    while given_up is not None and not wait([future], _LOOK).done:
        if given_up.is_set():
            raise UnreachableError("nobody waits for a store's answer any more")
    return future.result()
