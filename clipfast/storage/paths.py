"""Paths as text: a local path, or ``scheme://place/name`` in a storage that was registered.

Nothing here reads or writes. `os.path` would take the two slashes of a scheme for a root.
"""

import posixpath
import re

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def scheme_of(path: str) -> str:
    """The scheme before ``://``; ``file`` for a path without one."""
    found = _SCHEME.match(path)
    return found.group(1).lower() if found else "file"


def split(path: str) -> tuple[str, str]:
    """Folder and name, such as ``a``, ``b.tar``; the folder of ``mem://b.tar`` is ``mem://``."""
    if not _SCHEME.match(path):
        return posixpath.split(path)
    folder, slash, name = path.rpartition("/")
    return (folder + slash if folder.endswith(":/") else folder.rstrip("/")), name


def join(folder: str, *names: str) -> str:
    """``names`` below `folder`; an absolute name stands for itself."""
    for name in names:
        absolute = _SCHEME.match(name) or name.startswith("/")
        bare = folder == "" or folder.endswith("/")
        folder = name if absolute else f"{folder}{name}" if bare else f"{folder}/{name}"
    return folder


def split_extension(path: str) -> tuple[str, str]:
    """``a/b.tar`` -> ``a/b``, ``.tar``; the extension is "" where the name has none."""
    extension = posixpath.splitext(split(path)[1])[1]
    return path[: len(path) - len(extension)], extension


def tidy(path: str) -> str:
    """A folder or file as a person wrote it, without ``./`` and slashes that say nothing."""
    if _SCHEME.match(path):
        return path if path.endswith("://") else path.rstrip("/")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return "/" * path.startswith("/") + "/".join(parts) or "."


def relative(path: str, folder: str) -> str:
    """The part of `path` behind `folder`, above which it lies."""
    return path[len(folder) :].lstrip("/")
