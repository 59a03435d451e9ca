"""What reading from stores takes, counted for this process. A count costs a microsecond."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from threading import Lock

# Set while a copy is fetched: nobody waits for its bytes, and no sample asked for them.
_fills_a_cache: ContextVar[bool] = ContextVar("fills_a_cache", default=False)


@dataclass(frozen=True)
class Counts:
    """Of this process.

    Attributes:
        bytes: that stores sent, those of copies among them.
        requests: that stores were sent, of any kind; each attempt is one.
        retries: requests that were made because one before them failed in passing.
        seconds: in which at least one read waited for a store; not for copies.
        asked: bytes that were asked for of shards which a cache may hold.
        found: of those, bytes that a copy gave.
        copied: bytes that went from stores into a cache.
    """

    bytes: int = 0
    requests: int = 0
    retries: int = 0
    seconds: float = 0.0
    asked: int = 0
    found: int = 0
    copied: int = 0

    def __sub__(self, other: "Counts") -> "Counts":
        """What came since `other`."""
        return Counts(*(getattr(self, name) - value for name, value in asdict(other).items()))


_lock = Lock()
_counts: dict[str, float] = dict.fromkeys(asdict(Counts()), 0)
_waiting = 0
_since = 0.0


def add(**amounts: int) -> None:
    """Count something.

    Args:
        amounts: by the names of `Counts`.
    """
    with _lock:
        for name, amount in amounts.items():
            _counts[name] += amount


def counts() -> Counts:
    """Everything since the start of this process."""
    with _lock:
        found = dict(_counts)
        if _waiting:
            found["seconds"] += time.monotonic() - _since
    return Counts(**found)  # type: ignore[arg-type]


@contextmanager
def waiting() -> Iterator[None]:
    """Somebody waits for a store; several at a time wait once."""
    global _waiting, _since
    if _fills_a_cache.get():
        yield
        return
    with _lock:
        if not _waiting:
            _since = time.monotonic()
        _waiting += 1
    try:
        yield
    finally:
        with _lock:
            _waiting -= 1
            if not _waiting:
                _counts["seconds"] += time.monotonic() - _since


@contextmanager
def filling() -> Iterator[None]:
    """What is read within is for a cache."""
    token = _fills_a_cache.set(True)
    try:
        yield
    finally:
        _fills_a_cache.reset(token)


def fills() -> bool:
    """Whether what is read now is for a cache."""
    return _fills_a_cache.get()
