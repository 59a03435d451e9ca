"""Which shards a run reads, in 16 digits: the same wherever they lie, another for other data."""

import hashlib
from collections.abc import Sequence

import numpy as np

from clipfast.storage import storage_of

# Of so many shards, spread over the list, sizes and beginnings are looked at: a run on 41,408
# shards in an object store should not ask for each of them before it starts.
_LOOKED_INTO = 32
_BEGINNING = 64 << 10


def fingerprint(shards: Sequence[str], counts: np.ndarray) -> str:
    """Of shards in their order.

    It depends on every shard's name and number of samples, and on size and first bytes of some. It
    does not depend on the folder: data may move.

    Args:
        shards: paths.
        counts: ``[S]``, number of samples of each.

    Returns:
        Hexadecimal digits.

    Raises:
        OSError: a shard cannot be read.
    """
    digest = hashlib.sha256()
    for path, count in zip(shards, counts.tolist(), strict=True):
        digest.update(f"{path.rpartition('/')[2]} {count}\n".encode("utf-8", "surrogateescape"))
    for place in np.unique(np.linspace(0, len(shards) - 1, _LOOKED_INTO).astype(int)).tolist():
        # Opened once: in a store its size and version take one request.
        with storage_of(shards[place]).open(shards[place]) as reader:
            digest.update(f"{reader.size()}\n".encode())
            digest.update(reader.read_at(0, _BEGINNING))
    return digest.hexdigest()[:16]
