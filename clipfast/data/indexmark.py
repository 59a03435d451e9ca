"""How an index knows its own lines and its shard again: the third word of its first line.

    v1.2 10000 1:9f86d081884c7d65:512345600:2cf24dba5fb0a30e

is the version of the mark, a digest of the lines, the size of the tar, and a digest of parts of it.
An index made in a store is of version 2, with a digest of the ETag of the tar behind that. Where
it is the same, no part is read. DALI's reader passes over the word. Times are no part of it:
copying a data set does not keep them.
"""

import hashlib
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass

from clipfast.data.tarheader import BLOCK
from clipfast.storage import Reader, storage_of

_VERSION, _WITH_ETAG = "1", "2"
_MARK = re.compile(rb"(\w+):([0-9a-f]{16}):([0-9]{1,19}):([0-9a-f]{16})(?::([0-9a-f]{16}))?")
# A tar of up to so many bytes is looked at whole.
_WHOLE = 1 << 20
# Of a larger one: so many places over its length, and so many of its samples, `_PART` bytes each.
_PLACES = _SAMPLES = 32
_PART = 4096

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Mark:
    """What an index says of itself and of its shard.

    Attributes:
        lines: digest of the number of samples and of their lines.
        size: of the tar, in bytes.
        parts: digest of parts of the tar.
        etag: digest of the tar's ETag in the store where it was indexed; "" elsewhere.
    """

    lines: str
    size: int
    parts: str
    etag: str = ""

    def word(self) -> str:
        """As it stands in the first line."""
        version, end = (_WITH_ETAG, f":{self.etag}") if self.etag else (_VERSION, "")
        return f"{version}:{self.lines}:{self.size}:{self.parts}{end}"


def read_mark(word: bytes) -> Mark:
    """The mark that stands in a first line.

    Raises:
        ValueError: it is malformed, or of another version.
    """
    found = _MARK.fullmatch(word)
    if not found:
        raise ValueError(f"its first line has the word {word[:40]!r}, which is no mark")
    version = _WITH_ETAG if found[5] else _VERSION
    if found[1] != version.encode():
        raise ValueError(f"it was written by another version of clipfast (mark {found[1]!r})")
    etag = (found[5] or b"").decode()
    return Mark(found[2].decode(), int(found[3]), found[4].decode(), etag)


def make_mark(shard: str, count: int, body: bytes) -> Mark:
    """The mark of an index that is about to be written.

    Args:
        shard: path of the tar.
        count: number of samples.
        body: the lines.
    """
    with storage_of(shard).open(shard) as reader:
        size = reader.size()
        parts = _digest_of_parts(reader, size, body)
        return Mark(digest_of_lines(count, body), size, parts, _digest_of_etag(reader))


def misfit(shard: str, count: int, body: bytes, mark: Mark) -> str:
    """Why an index does not fit itself or its shard; '' where it does.

    Reads 400 KB of a large tar; nothing of one whose ETag is known.
    """
    if digest_of_lines(count, body) != mark.lines:
        return "its lines are not those that were written: it was cut, edited or damaged"
    with storage_of(shard).open(shard) as reader:
        size = reader.size()
        if why := other_size(size, mark):
            return why
        etag = _digest_of_etag(reader)
        if etag and etag == mark.etag:
            return ""
        if _digest_of_parts(reader, size, body) != mark.parts:
            return "the tar has other content than when it was indexed"
    if etag and mark.etag:
        _log.warning(
            "%s has another ETag than when it was indexed, as a copy in another place may have; "
            "the parts of it that an index knows are the same",
            shard,
        )
    return ""


def other_size(size: int, mark: Mark) -> str:
    """Why a tar of `size` bytes is not the one of a mark; '' where it may be."""
    if size == mark.size:
        return ""
    return f"the tar has {size:,} bytes, and had {mark.size:,} when it was indexed"


def digest_of_lines(count: int, body: bytes) -> str:
    """Of the lines of an index, 16 hexadecimal digits.

    Args:
        count: number of samples.
        body: the lines.
    """
    return hashlib.blake2b(b"%d\n" % count + body, digest_size=8).hexdigest()


def _digest_of_parts(reader: Reader, size: int, body: bytes) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in reader.read_many(list(_parts(size, body))):
        digest.update(part)
    return digest.hexdigest()


def _digest_of_etag(reader: Reader) -> str:
    stat = reader.stat()
    if stat is None or stat.etag is None:
        return ""
    return hashlib.blake2b(stat.etag.encode(), digest_size=8).hexdigest()


def _parts(size: int, body: bytes) -> Iterator[tuple[int, int]]:
    if size <= _WHOLE:
        yield 0, size
        return
    for place in range(_PLACES):
        yield (size - _PART) * place // (_PLACES - 1), _PART
    lines = body.split(b"\n")[:-1]
    chosen = min(_SAMPLES, len(lines))
    for number in range(chosen):
        # Image and caption: a caption is the part that is most easily written anew.
        for word in lines[len(lines) * number // chosen].split()[1:6:4]:
            if word.isdigit() and BLOCK <= int(word[:20]) <= size:
                yield int(word) - BLOCK, _PART
