"""Zip archives of tensors, looked through before anything in them is read."""

from __future__ import annotations

import zipfile
from pathlib import Path

# Programs and debug tables of TorchScript are compressed, tensors are not.
_LARGEST_RATIO = 8
_FREE_BYTES = 16 << 20


def entry_names(path: Path) -> list[str] | None:
    """The names in a zip whose entries are about as large as they claim.

    Args:
        path: an existing file.

    Returns:
        The names; None where this is no zip.

    Raises:
        ValueError: its directory is damaged; its entries claim many times the file's size, as in an
            archive that is made to fill the memory; or a name leads out of a folder.
    """
    if not zipfile.is_zipfile(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as error:  # a damaged directory can raise nearly anything
        raise ValueError(f"cannot read {path}: its zip directory is damaged ({error})") from error
    size, claimed = path.stat().st_size, sum(entry.file_size for entry in entries)
    if claimed > _LARGEST_RATIO * size + _FREE_BYTES:
        raise ValueError(
            f"refused to read {path}: it has {size:,} bytes, and its entries claim {claimed:,}"
        )
    names = [entry.filename for entry in entries]
    # Nothing is unpacked here, and an honest archive has no such name for others to unpack.
    leading_out = [n for n in names if n.startswith("/") or "\\" in n or ".." in n.split("/")]
    if leading_out:
        raise ValueError(f"refused to read {path}: it names files outside: {leading_out[0][:99]!r}")
    return names


def small_entry(path: Path, end: str, limit: int) -> bytes | None:
    """The bytes of an entry, one more than `limit` at most.

    Args:
        path: a zip that `entry_names` let pass.
        end: how the entry's name ends.
        limit: bytes.

    Returns:
        The bytes; None where there is no such entry.

    Raises:
        ValueError: the entry is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            name = next((n for n in archive.namelist() if n.endswith(end)), None)
            if name is None:
                return None
            with archive.open(name) as entry:
                return entry.read(limit + 1)
    except Exception as error:  # a damaged entry can raise nearly anything
        raise ValueError(f"cannot read {end.lstrip('/')} in {path}: {error}") from error
