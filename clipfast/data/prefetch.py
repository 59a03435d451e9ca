"""Batches read by background threads, ahead of the decoder."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from clipfast.arguments import whole_number
from clipfast.data.encoded import EncodedBatch, Request


class Prefetcher:
    """Runs ``read`` over requests in background threads and yields results in order.

    Args:
        read: called in the threads; its exceptions surface at the result's turn.
        requests: consumed lazily, ``depth`` ahead.
        threads: how many reads run at a time.
        depth: results held ready or under way.

    Raises:
        ValueError: `threads` or `depth` is below 1.
    """

    def __init__(
        self,
        read: Callable[[Request], EncodedBatch],
        requests: Iterable[Request],
        threads: int,
        depth: int,
    ) -> None:
        threads = whole_number("threads", threads, 1)
        depth = whole_number("depth", depth, 1)
        self._read = read
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
        result = self._pending.popleft().result()
        self._submit()
        return result

    def close(self) -> None:
        """Stop reading: what waits is cancelled, what is under way ends and is dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pending.clear()

    def _submit(self) -> None:
        request = next(self._requests, None)
        if request is not None:
            self._pending.append(self._pool.submit(self._read, request))
