"""Batches read by background threads, ahead of the decoder."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from threading import Event

from clipfast.arguments import whole_number
from clipfast.data.encoded import EncodedBatch, Request
from clipfast.storage.patience import unwanted

_SECONDS = 1.0


class Prefetcher:
    """Runs ``read`` over requests in background threads and yields results in order.

    Args:
        read: called in the threads; its exceptions surface at the result's turn.
        requests: consumed lazily, ``depth`` ahead.
        threads: how many reads run at a time.
        depth: results held ready or under way.
        on_wait: called each second that a result is waited for.

    Raises:
        ValueError: `threads` or `depth` is below 1.
    """

    def __init__(
        self,
        read: Callable[[Request], EncodedBatch],
        requests: Iterable[Request],
        threads: int,
        depth: int,
        on_wait: Callable[[], None] | None = None,
    ) -> None:
        threads = whole_number("threads", threads, 1)
        depth = whole_number("depth", depth, 1)
        self._on_wait = on_wait
        self._is_closed = Event()
        self._read = partial(_read, read, self._is_closed)
        self._requests: Iterator[Request] = iter(requests)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="clipfast-read")
        self._pending: deque[Future[EncodedBatch]] = deque()
        for _ in range(depth):
            self._submit()

    def __iter__(self) -> "Prefetcher":
        return self

    def __next__(self) -> EncodedBatch:
        if not self._pending:
            raise StopIteration
        result = self._result(self._pending.popleft())
        self._submit()
        return result

    def _result(self, future: Future[EncodedBatch]) -> EncodedBatch:
        try:
            while self._on_wait is not None and not wait([future], _SECONDS).done:
                self._on_wait()
            return future.result()
        finally:
            # An exception keeps this frame, and the future keeps the exception.
            del future

    def close(self) -> None:
        """Stop reading: what waits is cancelled, what is under way ends and is dropped. What waits
        for a store that does not answer gives up."""
        self._is_closed.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pending.clear()

    def _submit(self) -> None:
        request = next(self._requests, None)
        if request is not None:
            self._pending.append(self._pool.submit(self._read, request))


def _read(
    read: Callable[[Request], EncodedBatch], is_closed: Event, request: Request
) -> EncodedBatch:
    # It knows nothing of the prefetcher: an exception keeps its frames, and would keep the threads.
    unwanted.set(is_closed)
    return read(request)
