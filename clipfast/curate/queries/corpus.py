"""A text corpus in pieces: files of a line per paragraph, plain or by gzip."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from clipfast.curate.engine.parts import digest
from clipfast.storage import storage_of
from clipfast.storage.globs import has_magic
from clipfast.storage.paths import split

PIECE = 64 << 20
_MORE = 64 << 10
_LINES = re.compile(rb"[^\n]*\n|[^\n]+")


@dataclass(frozen=True)
class Piece:
    """Lines of a file: those that begin in a range of its bytes.

    Attributes:
        path: of the file.
        start: first byte.
        end: behind the last one; a line that begins before goes on to its end.
        stamp: of the file's size and time.
    """

    path: str
    start: int
    end: int
    stamp: str

    @property
    def part(self) -> str:
        """See ``clipfast.curate.engine.Item``."""
        return f"{split(self.path)[1]}-{self.stamp}-{self.start:014d}"

    def lines(self) -> Iterator[str]:
        """The lines, without their ends. What is no UTF-8 becomes U+FFFD."""
        storage = storage_of(self.path)
        if self.path.endswith(".gz"):
            data = gzip.decompress(storage.read(self.path))
        else:
            data = self._own(storage.open(self.path).read_at)
        for found in _LINES.finditer(data):
            yield found.group().rstrip(b"\r\n").decode("utf-8", "replace")

    def _own(self, read_at: Callable[[int, int], bytes]) -> bytes:
        """The bytes from the first line that begins in the range to the end of the last one."""
        # From one byte before: a line begins behind a line end.
        before = max(0, self.start - 1)
        data = read_at(before, self.end - before)
        if self.start:
            data = data[data.find(b"\n") + 1 :] if b"\n" in data else b""
        at = self.end
        while data and not data.endswith(b"\n"):
            more = read_at(at, _MORE)
            if not more:
                break
            at += len(more)
            data += more[: more.find(b"\n") + 1] if b"\n" in more else more
        return data


def pieces_of(patterns: Sequence[str], size: int = PIECE) -> list[Piece]:
    """The pieces of a corpus. A file by gzip is one piece, since it is read from its start.

    Args:
        patterns: paths of files, with wildcards or without.
        size: bytes of a piece; it changes no result.

    Raises:
        ValueError: two files have one name, size and time.
        FileNotFoundError: a pattern matches no file.
    """
    pieces: dict[str, Piece] = {}
    for path in _files(patterns):
        storage = storage_of(path)
        total = storage.size(path)
        stamp = digest([total, storage.modified(path)])
        step = max(1, total) if path.endswith(".gz") else size
        for start in range(0, total, step):
            piece = Piece(path, start, min(start + step, total), stamp)
            if pieces.setdefault(piece.part, piece).path != path:
                raise ValueError(
                    f"{path} and {pieces[piece.part].path} have one name, size and time: remove or "
                    "rename one"
                )
    return list(pieces.values())


def _files(patterns: Sequence[str]) -> Iterator[str]:
    for pattern in patterns:
        storage = storage_of(pattern)
        path = storage.resolve(pattern)
        if storage.is_file(path):
            yield path
            continue
        found = [p for p, is_file in storage.glob(path) if is_file] if has_magic(path) else []
        if not found:
            raise FileNotFoundError(f"no text file {pattern!r}; give files, or a pattern of them")
        yield from found
