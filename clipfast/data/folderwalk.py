"""Walk a folder tree through its links: each folder once, and what is not walked is told."""

from collections.abc import Iterator, Sequence

from clipfast.storage import Listed, storage_of
from clipfast.storage.paths import join, relative


def walk_once(top: str, notes: list[tuple[str, str]]) -> Iterator[tuple[str, Sequence[Listed]]]:
    """Every folder from `top` down, in order, with what is no folder in it.

    A link is followed where nothing else leads to its folder.

    Args:
        top: where to begin.
        notes: gets (path below `top`, why) of each folder that is left alone.

    Raises:
        OSError: `top` cannot be read.
    """
    storage = storage_of(top)
    seen = {storage.target(top): "."}
    inside = storage.target(top).rstrip("/") + "/"
    ahead = [top]
    while ahead:
        at = ahead.pop()
        here = storage.target(at)
        try:
            listed = sorted(storage.list(at), key=lambda each: each.name)
        except OSError as error:
            if at == top:
                raise
            notes.append((relative(at, top), f"folder is unreadable: {error.strerror}"))
            continue
        yield at, [each for each in listed if not each.is_folder]
        below = []
        for name in (each.name for each in listed if each.is_folder):
            path = join(at, name)
            source, target = relative(path, top), storage.target(path)
            linked = target != join(here, name)
            inner = target.removeprefix(inside)
            if name.startswith("."):
                notes.append((source, "hidden folder is left alone"))
            elif linked and inside.startswith(target.rstrip("/") + "/"):
                notes.append((source, "linked folder leads back up; it is not followed"))
            elif target in seen:
                notes.append((source, f"linked folder is {seen[target]!r}, which is taken once"))
            elif linked and inner != target and not _is_hidden(inner):
                notes.append((source, f"linked folder is {inner!r}, which is taken once"))
            else:
                seen[target] = source
                below.append(path)
        ahead += reversed(below)


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))
