"""What a file is that holds no weights: most are downloads that went wrong, or other formats."""

from __future__ import annotations

import json
import re
from pathlib import Path

from clipfast.models.inert import largest_pickle
from clipfast.models.saved import LEGACY_START

_HEAD = 4096
_LFS = (
    "a Git LFS pointer, which stands for the file: fetch it with `git lfs pull`, or download it "
    "from its page"
)
_AGAIN = "download the file itself"
_UNPACK = "unpack it, and name the file of weights in it"
_OTHER = "save the weights there as .safetensors, or as a state dict with torch.save"

# Kind and remedy, by how a file begins.
_STARTS: tuple[tuple[bytes, str, str], ...] = (
    (b"\x1f\x8b", "compressed by gzip", _UNPACK),
    (b"BZh", "compressed by bzip2", _UNPACK),
    (b"\xfd7zXZ", "compressed by xz", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", _UNPACK),
    (b"\x04\x22\x4d\x18", "compressed by lz4", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!", "a RAR archive", _UNPACK),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes it", _OTHER),
    (b"\x93NUMPY", "an array of NumPy", _OTHER),
    (b"GGUF", "a GGUF file of llama.cpp", _OTHER),
    (b"\x89PNG", "a PNG image", _AGAIN),
    (b"\xff\xd8\xff", "a JPEG image", _AGAIN),
    (b"GIF8", "a GIF image", _AGAIN),
    (b"%PDF", "a PDF document", _AGAIN),
    (b"\x7fELF", "a program", _AGAIN),
    (b"#!", "a script", _AGAIN),
)
_TAR = (257, b"ustar")
# Names of entries, and what a zip with one of them is.
_ZIPS: tuple[tuple[str, str, str], ...] = (
    (r"\.npy$", "an .npz of NumPy", _OTHER),
    (r"(^|/)model\.weights\.h5$", "a model of Keras", _OTHER),
    (r"(^|/)(archive_format|models/.*\.json)$", "an archive of torch.export (.pt2)", _OTHER),
    (r"(^|/)saved_model\.pb$", "a model of TensorFlow", _OTHER),
    (r"\.(pt|pth|bin|ckpt|safetensors)$", "a zip with files of weights in it", _UNPACK),
    (r"^(word|xl|ppt)/", "an office document", _AGAIN),
)


def kind_of(path: Path) -> str | None:
    """What a file is that holds no weights, and what to do.

    Args:
        path: an existing file that is not empty.

    Returns:
        A phrase such as "an HTML page: download the file itself"; None where it may hold weights.
    """
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    size = path.stat().st_size
    for start, kind, remedy in _STARTS:
        if head.startswith(start):
            return f"it is {kind}: {remedy}"
    offset, magic = _TAR
    if head[offset : offset + len(magic)] == magic:
        return (
            "it is a tar: unpack it, if weights were packed in it; if torch before 0.2 wrote it, "
            "load and save it once with the torch of its time"
        )
    if not head.strip(b"\0"):
        return (
            f"its first {len(head):,} bytes are zero, as of a download that ended early: " + _AGAIN
        )
    return _text_kind(head, size)


def unknown_kind(path: Path) -> str:
    """What can be said of a file that is of no known kind."""
    with open(path, "rb") as file:
        head = file.read(_HEAD)
    if head[:1] == b"\x80":
        return (
            "it is a plain pickle, as pickle.dump writes it: save the weights in the program that "
            "made it with torch.save, or as .safetensors"
        )
    return f"it begins with {head[:24]!r}, as no file of weights does"


def is_legacy(path: Path) -> bool:
    """Whether torch of before 1.6 wrote a file."""
    with open(path, "rb") as file:
        return file.read(len(LEGACY_START)) == LEGACY_START


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do, or bears their suffix and begins as nothing else."""
    with open(path, "rb") as file:
        head = file.read(9)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 40:
        return True
    return path.suffix == ".safetensors" and not is_legacy(path)


def check_header(path: Path) -> None:
    """Refuse safetensors whose header is longer than names and shapes are.

    Raises:
        ValueError: it is.
    """
    with open(path, "rb") as file:
        claimed = int.from_bytes(file.read(8), "little")
    limit = largest_pickle(path.stat().st_size)
    if claimed > limit:
        raise ValueError(f"its header claims {claimed:,} bytes, more than {limit:,}")


def kind_of_zip(names: list[str]) -> str:
    """What a zip is that torch did not write, and what to do.

    Args:
        names: of its entries.
    """
    for pattern, kind, remedy in _ZIPS:
        if any(re.search(pattern, name) for name in names):
            return f"it is {kind}: {remedy}"
    return f"it is a zip that torch did not write: {_UNPACK}"


def _text_kind(head: bytes, size: int) -> str | None:
    if head.startswith(b"\xef\xbb\xbf"):
        head = head[3:]
    start = head.lstrip()[:512]
    lower = start.lower()
    if start.startswith(b"version https://git-lfs.github.com"):
        return f"it is {_LFS}"
    if re.match(rb"<!doctype html|<html|<head|<body|<!--|<script", lower):
        return f"it is an HTML page, as a login or an error gives it: {_AGAIN}"
    if lower.startswith((b"<?xml", b"<error")):
        return f"it is an XML page, as a storage's error gives it: {_AGAIN}"
    if start[:1] in (b"{", b"["):
        return _json_kind(head, size)
    return None


def _json_kind(head: bytes, size: int) -> str | None:
    if not _is_text(head):
        return None
    kind = "JSON"
    if size <= len(head):
        try:
            found = json.loads(head)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, dict) and found.keys() & {"error", "message", "errors"}:
            kind = "a JSON page with an error"
    return f"it is {kind}, no weights: {_AGAIN}"


def _is_text(head: bytes) -> bool:
    return not re.search(rb"[\0-\x08\x0e-\x1f]", head)
