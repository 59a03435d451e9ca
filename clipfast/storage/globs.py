"""Match ``* ? [..] **`` against the listings of a storage, by the rules of Python's `glob`."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from clipfast.storage.paths import join, split

if TYPE_CHECKING:
    from clipfast.storage.base import Listed, Storage

_MAGIC = re.compile(r"[*?[]")


def has_magic(pattern: str) -> bool:
    """Whether a pattern has a wildcard."""
    return _MAGIC.search(pattern) is not None


def glob_paths(storage: Storage, pattern: str, *, strict: bool = False) -> list[tuple[str, bool]]:
    """All paths that match, sorted, each with whether it is a file.

    ``**`` as a whole part matches any number of folders, none too. Names that begin with a dot
    match only a part that does. A folder that cannot be listed has no matches, unless `strict`.

    Args:
        storage: what holds the paths.
        pattern: a path whose parts may hold wildcards.
        strict: a folder that cannot be listed is an error.
    """
    folder, name = split(pattern)
    folders = [folder]
    if has_magic(folder):
        folders = [
            path for path, is_file in glob_paths(storage, folder, strict=strict) if not is_file
        ]
    return sorted({match for each in folders for match in _matches(storage, each, name, strict)})


def _matches(storage: Storage, folder: str, name: str, strict: bool) -> Iterator[tuple[str, bool]]:
    if name == "**":
        yield folder, False
        yield from _below(storage, folder, strict)
    elif has_magic(name):
        matches = re.compile(fnmatch.translate(name)).match
        for each in _listed(storage, folder, strict):
            if matches(each.name) and (name.startswith(".") or not each.name.startswith(".")):
                yield join(folder, each.name), each.is_file
    elif storage.exists(join(folder, name)):
        yield join(folder, name), storage.is_file(join(folder, name))


def _below(storage: Storage, folder: str, strict: bool) -> Iterator[tuple[str, bool]]:
    for each in _listed(storage, folder, strict):
        if not each.name.startswith("."):
            path = join(folder, each.name)
            yield path, each.is_file
            if each.is_folder:
                yield from _below(storage, path, strict)


def _listed(storage: Storage, folder: str, strict: bool) -> Sequence[Listed]:
    try:
        return storage.list(folder)
    except OSError:
        if strict:
            raise
        return []
