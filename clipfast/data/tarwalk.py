"""Walk the headers of a tar without reading its members.

Python's tarfile builds an object of twenty fields per member; a shard of 10,000 samples needs only
name, offset and size. Headers are read one by one rather than through a memory map, so that an I/O
error of a network file system is an OSError and not a SIGBUS.

A tar may say anything: sizes, names and numbers of records are checked before they are believed.
What two programs would read differently is refused. What a walk passes over, it names.
"""

from collections.abc import Callable, Iterator

from clipfast.data.tarheader import (
    BLOCK,
    NOTHING,
    Extra,
    long_name,
    name_of,
    pax_records,
    plain,
    size_of,
    text,
    valid,
)
from clipfast.storage import Reader, storage_of

_REGULAR = frozenset((b"0", b"\0", b"7"))
# Links, devices, folders and pipes carry no data, whatever their size field says.
_WITHOUT_DATA = frozenset((b"1", b"2", b"3", b"4", b"5", b"6"))
_HARD_LINK, _SOFT_LINK = b"1", b"2"
_FOLDER = b"5"
_SPECIAL = {
    b"3": "a device",
    b"4": "a device",
    b"6": "a named pipe",
    b"D": "a folder's list of an incremental archive",
    b"V": "the label of a volume",
}
_PAX, _ABOUT_NEXT = (b"x", b"X", b"g"), (b"x", b"X", b"g", b"L", b"K")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_BLANK = bytes(BLOCK)
# Bytes of names and pax records in front of one member. Paths of Linux end at 4 KiB.
_LARGEST_EXTRA = 1 << 20
# How far behind the end of an archive another one is looked for. Records of tar are 10 KiB.
_LOOKED_BEHIND = 16 << 20
_PIECE = 64 << 10
# Bytes that are read with a header.
_READ = 4096

# Takes the name of a member (None for the shard itself) and what there is to say of it.
Note = Callable[[str | None, str], None]


def no_note(name: str | None, why: str) -> None:
    """A `Note` for whoever does not ask."""


def read_exactly(reader: Reader, offset: int, size: int, name: str) -> bytes:
    """Read exactly `size` bytes at `offset`.

    Args:
        reader: what to read from.
        offset: first byte.
        size: number of bytes.
        name: path of what is read, for the message.

    Raises:
        ValueError: it ends before.
    """
    data = reader.read_at(offset, size)
    check_length(data, offset, size, name)
    return data


def check_length(data: bytes, offset: int, size: int, name: str) -> None:
    """See that nothing of a range is missing.

    Args:
        data: what was read.
        offset: first byte.
        size: number of bytes that were asked for.
        name: path of what was read, for the message.

    Raises:
        ValueError: it ends before.
    """
    if len(data) < size:
        raise ValueError(
            f"{name!r} ends at byte {offset + len(data):,}, but {size:,} bytes were expected "
            f"at {offset:,}; it was cut or replaced: fetch it again and make its index anew"
        )


def walk(shard: str, note: Note = no_note) -> Iterator[tuple[str, int, int]]:
    """Yield (name, offset of the data, size) of every regular file of a tar, in order.

    Reads ustar, GNU (long names, base-256 sizes) and pax headers. A hard link counts as the file
    that it points to. Archives that were joined (``cat a.tar b.tar``) are read to the end.

    Args:
        shard: path of a plain tar.
        note: called for each member that holds no data and is no folder, and for what is odd about
            the shard.

    Raises:
        ValueError: the file is empty, truncated, compressed, damaged, or no tar; or it has a sparse
            file or a part of one, or is ambiguous. Names the shard and the byte.
    """
    with storage_of(shard).open(shard) as reader:
        yield from _Walk(shard, reader, note).members()


class _Walk:
    def __init__(self, shard: str, reader: Reader, note: Note) -> None:
        self._shard, self._reader, self._note = shard, reader, note
        self._end = reader.size()
        # Where each file lies, for hard links to it.
        self._places: dict[str, tuple[int, int]] = {}
        self._piece, self._piece_at = b"", 0

    def members(self) -> Iterator[tuple[str, int, int]]:
        self._check_start()
        at = 0
        ended = False
        extra: Extra | None = None
        while at < self._end:
            header = self._read(at, BLOCK)
            common = plain(header)
            if common is None and header == _BLANK:
                self._check_nothing_waits(extra, at)
                at, ended = self._next_archive(at), True
                continue
            ended = False
            kind, name, size = common or self._parts(header, at)
            if kind in _ABOUT_NEXT:
                extra, at = self._joined(extra, kind, size, at)
                continue
            if extra is not None:
                size = size if extra.size is None else extra.size
                name = name if extra.path is None else extra.path
            data = at + BLOCK
            at = data if kind in _WITHOUT_DATA else self._behind(data, size)
            place: tuple[int, int] | None = (data, size)
            if kind != b"0" or name.endswith("/"):
                place = self._place(kind, name, data, size, header, extra or NOTHING)
            extra = None
            if place is not None:
                self._places[name] = place
                yield name, *place
        self._check_nothing_waits(extra, at)
        if not ended:
            self._note(
                None, f"shard has no end mark: it may have been cut at byte {at:,}, between members"
            )

    def _read(self, at: int, size: int) -> bytes:
        # A caption and the header behind it come with its own: half the reads, of one page each.
        start = at - self._piece_at
        if start < 0 or start + size > len(self._piece):
            self._piece = self._reader.read_at(at, max(size, _READ))
            self._piece_at, start = at, 0
        return self._piece[start : start + size]

    def _parts(self, header: bytes, at: int) -> tuple[bytes, str, int]:
        """Kind, name and size in a header of any form."""
        if len(header) < BLOCK:
            raise self._refuse(f"is truncated: it ends within the header at byte {at:,}")
        if not valid(header):
            what = "is no tar" if at == 0 else "is damaged"
            raise self._refuse(f"{what}: no valid header at byte {at:,}")
        try:
            return header[156:157], name_of(header), size_of(header)
        except ValueError as error:
            raise self._damaged(at, error) from None

    def _refuse(self, why: str) -> ValueError:
        return ValueError(f"shard {self._shard!r} {why}; fetch or pack it again")

    def _damaged(self, at: int, why: object) -> ValueError:
        return self._refuse(f"is damaged: in the header at byte {at:,} {why}")

    def _check_start(self) -> None:
        if self._end == 0:
            raise self._refuse("is a zero-byte file")
        start = self._reader.read_at(0, BLOCK)
        for magic, kind in _COMPRESSED.items():
            if start.startswith(magic) and not valid(start):
                raise ValueError(
                    f"shard {self._shard!r} is compressed ({kind}), which has no random access; "
                    "decompress it to a plain tar"
                )
        if self._end < BLOCK:
            raise self._refuse(f"is no tar: it has {self._end} bytes")

    def _check_nothing_waits(self, extra: Extra | None, at: int) -> None:
        if extra is not None:
            raise self._refuse(f"is damaged: a long name or pax header at byte {at:,} has no file")

    def _behind(self, data: int, size: int) -> int:
        """Where the header behind a member begins."""
        behind = data + -(-size // BLOCK) * BLOCK
        if behind > self._end:
            raise self._refuse(
                f"is truncated: the member at byte {data - BLOCK:,} reaches to byte {behind:,} of "
                f"{self._end:,}"
            )
        return behind

    def _joined(self, extra: Extra | None, kind: bytes, size: int, at: int) -> tuple[Extra, int]:
        """What headers say of the next member, with one more; and where the next one begins."""
        if size > _LARGEST_EXTRA:
            raise self._damaged(at, f"a name or pax header claims {size:,} bytes")
        behind = self._behind(at + BLOCK, size)
        body = self._read(at + BLOCK, behind - at - BLOCK)
        try:
            if len(body) < size or body[size:].strip(b"\0"):
                # Some programs read it as more of the same.
                raise ValueError("a name or pax header does not end where it says")
            new = pax_records(body[:size]) if kind in _PAX else long_name(kind, body[:size])
            if kind != b"g":
                return new if extra is None else extra.joined(new), behind
            if new != NOTHING:
                raise ValueError("a global pax header gives all members one name or size")
        except ValueError as error:
            raise self._damaged(at, error) from None
        return extra or NOTHING, behind

    def _place(
        self, kind: bytes, name: str, data: int, size: int, header: bytes, extra: Extra
    ) -> tuple[int, int] | None:
        """Where the data of a member lie; None, and a note, where it has none."""
        if kind in _REGULAR:
            # In the oldest form a slash makes a folder, and its data, for some programs, headers.
            old_folder = kind == b"\0" and text(header[:100]).endswith("/")
            if old_folder and size:
                raise self._damaged(data - BLOCK, "a folder has data")
            if not old_folder and not name.endswith("/"):
                return data, size
            if not old_folder or extra.path is not None:
                self._note(name, "left out: its name ends in a slash, as that of a folder")
        elif kind == _HARD_LINK:
            target = extra.linkpath or text(header[157:257])
            for spelling in (target, target.removeprefix("./"), f"./{target}"):
                if spelling in self._places:
                    return self._places[spelling]
            self._note(name, f"left out: hard link to {target!r}, which is no file before it")
        elif kind == _SOFT_LINK:
            target = extra.linkpath or text(header[157:257])
            self._note(name, f"left out: link to {target!r}; pack it with tar --dereference")
        elif kind == b"S":
            raise ValueError(
                f"shard {self._shard!r} holds a sparse file at byte {data - BLOCK:,}; pack it "
                "without --sparse"
            )
        elif kind == b"M":
            raise ValueError(
                f"shard {self._shard!r} is a part of an archive of several volumes (byte "
                f"{data - BLOCK:,}); extract all volumes and pack them into one tar each"
            )
        elif kind != _FOLDER:
            what = _SPECIAL.get(kind, f"of the unknown kind {kind!r}")
            self._note(name, f"left out: it is {what}, no file")
        return None

    def _next_archive(self, blank: int) -> int:
        """Where a walk goes on behind the blank block that ends an archive; the end if nowhere."""
        found, looked = blank, min(self._end, blank + _LOOKED_BEHIND)
        while found < looked:
            piece = self._reader.read_at(found, min(_PIECE, self._end - found))
            left = len(piece.lstrip(b"\0"))
            found += len(piece) - left
            if left or not piece:
                break
        found -= found % BLOCK if found < self._end else 0
        rest = self._end - found
        if rest == 0 or not any(self._reader.read_at(found, BLOCK)):
            if blank == 0:
                raise self._refuse("is an empty tar")
            if rest:
                self._left_unread(found, f"{looked - blank:,} bytes of zeros lie before them")
            return self._end
        if valid(self._reader.read_at(found, BLOCK)):
            self._note(
                None,
                f"another archive begins at byte {found:,}, behind the end of one at {blank:,}: "
                "it is read too, where most programs stop",
            )
            return found
        if blank == 0:
            raise self._refuse(f"is no tar: no valid header at byte {found:,}")
        self._left_unread(found, "they lie behind the end of the archive and are no tar")
        return self._end

    def _left_unread(self, at: int, why: str) -> None:
        self._note(None, f"{self._end - at:,} bytes from byte {at:,} on were left unread: {why}")
