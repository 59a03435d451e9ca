"""What Python's tarfile reads in some bytes: the truth that a walk over them must meet."""

import io
import tarfile
from dataclasses import dataclass, field

BLOCK = 512


@dataclass
class Reading:
    """What is there.

    Attributes:
        files: (name, offset, size) of what holds data, hard links resolved, in order.
        others: names of what is no file: links without a target, devices.
        whole: tarfile met the end of the archive, or of each of them, and no bad header.
        rest: bytes behind the end of the last archive that are no tar.
        marked: zeros end the last archive.
    """

    files: list[tuple[str, int, int]] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    whole: bool = True
    rest: int = 0
    marked: bool = True


def read(data: bytes) -> Reading:
    """Read every archive in `data`, one behind the other."""
    found = Reading()
    at = _behind_zeros(data, 0)
    first = True
    while at < len(data):
        archive = data[at:]
        try:
            tar = tarfile.TarFile(fileobj=io.BytesIO(archive), encoding="utf-8")
        except Exception:  # it raises what its parts raise: OverflowError, ValueError, ...
            found.rest, found.whole = len(archive), found.whole and not first
            return found
        stop = _read_one(tar, at, found)
        found.marked = archive[stop : stop + BLOCK] == bytes(BLOCK)
        found.whole = found.whole and (found.marked or stop >= len(archive))
        if not found.whole:
            return found
        at, first = _behind_zeros(data, at + stop), False
    return found


def _read_one(tar: tarfile.TarFile, base: int, found: Reading) -> int:
    """Add the members of one archive; returns where its last member ends."""
    try:
        for each in tar:
            place = _place(each, base, found)
            if place is not None:
                found.files.append((each.name, *place))
            elif not each.isdir():
                found.others.append(each.name)
    except Exception:
        found.whole = False
    return tar.offset


def _place(each: tarfile.TarInfo, base: int, found: Reading) -> tuple[int, int] | None:
    if each.issparse():
        found.whole = False
    if each.isreg():
        return base + each.offset_data, each.size
    if each.islnk():
        targets = (each.linkname, each.linkname.removeprefix("./"), f"./{each.linkname}")
        for target in targets:
            for name, offset, size in reversed(found.files):
                if name == target:
                    return offset, size
    return None


def _behind_zeros(data: bytes, at: int) -> int:
    zeros = len(data) - at - len(data[at:].lstrip(b"\0"))
    if at + zeros == len(data):
        return len(data)
    return at + zeros - zeros % BLOCK
