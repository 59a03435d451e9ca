"""A storage in memory that can fail, or end, at any of its requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from clipfast.storage import Listed, Storage


class Memory(Storage):
    """Objects by path.

    Attributes:
        objects: what is there.
        before: is called before each request that changes something, with its path.
    """

    is_remote = True

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.before: Callable[[str], None] = lambda path: None
        self.requests: list[str] = []

    def list(self, folder: str) -> Sequence[Listed]:
        start = folder.rstrip("/") + "/"
        names = [path.removeprefix(start) for path in self.objects if path.startswith(start)]
        folders = {name.partition("/")[0] for name in names if "/" in name}
        files = {name for name in names if "/" not in name}
        return [Listed(name, name in folders, name in files) for name in sorted(folders | files)]

    def _of(self, path: str) -> bytes:
        if path not in self.objects:
            raise FileNotFoundError(path)
        return self.objects[path]

    def size(self, path: str) -> int:
        return len(self._of(path))

    def modified(self, path: str) -> int:
        return hash(self._of(path))

    def read_at(self, path: str, offset: int, size: int) -> bytes:
        return self._of(path)[offset : offset + size]

    def write_atomic(self, path: str, data: bytes) -> None:
        self._change(path)
        self.objects[path] = bytes(data)

    def remove(self, path: str) -> None:
        self._change(path)
        self.objects.pop(path, None)

    def _change(self, path: str) -> None:
        self.requests.append(path)
        self.before(path)
