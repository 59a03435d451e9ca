"""A file of a store on this machine, for as long as it is read."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clipfast.storage import storage_of
from clipfast.storage.paths import scheme_of, split
from clipfast.storage.transfer import ranges


def is_elsewhere(path: str) -> bool:
    """Whether this is no path of this machine's file systems."""
    return scheme_of(path) != "file"


@contextmanager
def nearby(path: str) -> Iterator[Path]:
    """A copy in a temporary folder, under the object's own name; a file of this machine itself.

    Args:
        path: of the file or object.

    Yields:
        Where it can be opened.

    Raises:
        FileNotFoundError: there is no such object.
        OSError: the store does not answer, or says no; or there is no room for the copy.
    """
    if not is_elsewhere(path):
        yield Path(storage_of(path).resolve(path))
        return
    storage = storage_of(path)
    with tempfile.TemporaryDirectory(prefix="clipfast-nearby-") as folder:
        copy = Path(folder) / split(path)[1]
        with storage.open(path) as reader, open(copy, "wb") as file:
            for data in ranges(reader, storage, reader.size()):
                file.write(data)
        yield copy
