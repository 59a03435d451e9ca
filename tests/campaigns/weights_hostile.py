"""Files that are made to fill the memory, to take for ever, or to reach what is not theirs."""

import copy
import functools
import io
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import torch

from tests.campaigns.weights_kinds import File, State

_BOMBS = "made to fill or to hang"
_REACH = "made to reach out"


def _archive(
    name: str,
    tree: bytes,
    *words: str,
    kind: str = _BOMBS,
    script: bool = False,
    **entries: bytes,
) -> File:
    """A zip whose pickle is `tree`."""

    def make(folder: Path, state: State) -> Path:
        path = folder / "model.pt"
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("m/data.pkl", tree)
            file.writestr("m/byteorder", b"little")
            if script:
                file.writestr("m/constants.pkl", b"")
            for entry, data in entries.items():
                file.writestr(f"m/data/{entry.removeprefix('s')}", data)
        return path

    return File(kind, name, make, words)


@functools.cache
def _two_gigabytes() -> bytes:
    """Zeros, compressed."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(2048)) + packer.flush()


def _deflated(name: str, compressed: str, claims: int | None, *words: str) -> File:
    """Weights with an entry of 2 GB of zeros that was compressed to 2 MB."""

    def make(folder: Path, state: State) -> Path:
        torch.save(state, folder / "whole.pt")
        path = folder / "model.pt"
        data = _two_gigabytes()
        with zipfile.ZipFile(folder / "whole.pt") as old, zipfile.ZipFile(path, "w") as new:
            for entry in old.namelist():
                content = old.read(entry)
                if entry.endswith(compressed):
                    content = data
                new.writestr(entry, content)
            info = next(i for i in new.infolist() if i.filename.endswith(compressed))
            info.compress_type = zipfile.ZIP_DEFLATED
            info.file_size = 1 << 31 if claims is None else claims
        (folder / "whole.pt").unlink()
        return path

    return File(_BOMBS, name, make, words)


def _modules(edges: Callable[[int], list[int]], count: int) -> bytes:
    """A pickle of modules; each holds others, under letters."""
    tree = [b"\x80\x02"]
    for i in range(count):
        tree.append(b"c__torch__\nM\n)\x81q" + bytes([i]) + b"}(")
        tree += [b"U\x01" + bytes([97 + j]) + b"h" + bytes([k]) for j, k in enumerate(edges(i))]
        tree.append(b"ub" + (b"." if i == count - 1 else b"0"))
    return b"".join(tree)


def _many_entries(folder: Path, state: State) -> Path:
    with zipfile.ZipFile(folder / "model.pt", "w") as file:
        for i in range(120_000):
            file.writestr(zipfile.ZipInfo(f"m/{i}"), b"")
    return folder / "model.pt"


def _overlapping(folder: Path, state: State) -> Path:
    with zipfile.ZipFile(folder / "model.pt", "w") as file:
        file.writestr("m/data.pkl", bytes(1 << 20))
        for i in range(40):
            again = copy.copy(file.filelist[0])
            again.filename = f"m/data/{i}"
            file.filelist.append(again)
    return folder / "model.pt"


def _named_twice(folder: Path, state: State) -> Path:
    torch.save(state, folder / "model.pt")
    with zipfile.ZipFile(folder / "model.pt", "a") as file:
        again = copy.copy(next(i for i in file.filelist if i.filename.endswith("data/3")))
        file.filelist.append(again)
        file._didModify = True
    return folder / "model.pt"


def _long_header(folder: Path, state: State) -> Path:
    entry = '"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = ("{" + ",".join(entry % i for i in range(300_000)) + "}").encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    return folder / "model.safetensors"


def _legacy(name: str, tree: bytes, *words: str) -> File:
    """A file of torch before 1.6, whose object is `tree`."""

    def make(folder: Path, state: State) -> Path:
        torch.save({}, folder / "model.pt", _use_new_zipfile_serialization=False)
        file = io.BytesIO((folder / "model.pt").read_bytes())
        for _ in range(3):
            pickle.load(file)
        head = file.getvalue()[: file.tell()]
        (folder / "model.pt").write_bytes(head + tree + pickle.dumps([], 2))
        return folder / "model.pt"

    return File(_BOMBS, name, make, words)


def _collisions() -> bytes:
    """A dict whose keys have one hash."""
    prime = (1 << 61) - 1
    keys = [(i * prime).to_bytes(10, "little") for i in range(1, 35_000)]
    return b"\x80\x02}(" + b"".join(b"\x8a\x0a" + key + b"N" for key in keys) + b"u."


def _storage(numel: bytes = b"K\x02") -> bytes:
    return b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpu" + numel + b"tQ"


def _tensor(offset: bytes, size: bytes, stride: bytes, numel: bytes = b"K\x02") -> bytes:
    """A state dict of one tensor: offset, size and stride are opcodes."""
    return (
        b"\x80\x02}U\x0blogit_scalectorch._utils\n_rebuild_tensor_v2\n("
        + _storage(numel) + offset + size + b"\x85" + stride + b"\x85" + b"I00\n}tRs."
    )  # fmt: skip


_MINUS = b"J\xff\xff\xff\xff"
_HUGE = b"\x8a\x08" + (1 << 61).to_bytes(8, "little")
_EIGHT = {"s0": bytes(8)}

HOSTILE: list[File] = [
    _deflated("a storage that unpacks to 2 GB", "data/3", None, "claim"),
    _deflated("the same, and claims 4 KB", "data/3", 4096, "compressed"),
    _deflated("a pickle that unpacks to 2 GB", "data.pkl", None, "claim"),
    _deflated("the same, and claims 4 KB", "data.pkl", 4096, "cannot read"),
    File(_BOMBS, "entries that overlap", _overlapping, ("claim",)),
    File(_BOMBS, "120,000 entries", _many_entries, ("directory",)),
    File(_BOMBS, "an entry named twice", _named_twice, ("one name",)),
    File(_BOMBS, "a long header of safetensors", _long_header, ("header claims",)),
    _archive("modules shared 2^40 times", _modules(lambda i: [i - 1] * 2 if i else [], 40),
             "names", script=True),
    _archive("modules shared 20^20 times", _modules(lambda i: [i - 1] * 20 if i else [], 20),
             "names", script=True),
    _archive("modules that contain each other", _modules(lambda i: [i, i], 1), "contain each other",
             script=True),
    _archive("modules 200 deep", _modules(lambda i: [i - 1] if i else [], 200), "contain each",
             script=True),
    _archive("a note number without end", b"\x80\x02Nr\xff\xff\xff\x7f.", "NoneType"),
    _archive("an array of bytes without end", b"\x80\x05\x96" + (1 << 34).to_bytes(8, "little") +
             b".", "bytes"),
    _archive("a string without end", b"\x80\x04\x8d" + (1 << 40).to_bytes(8, "little") + b".",
             "cannot read", "truncated"),
    _archive("3 million lists", b"\x80\x02(" + b"]" * 3_000_000 + b"t.", "pickle has more"),
    _archive("450,000 lists", b"\x80\x02(" + b"]" * 450_000 + b"t.", "holds a tuple"),
    _archive("lists in lists", b"\x80\x02" + b"]" * 250_000 + b"a" * 249_999 + b".",
             "holds a list"),
    _archive("keys of one hash", _collisions(), "keys", "pickle has more"),
    _archive("tuples of tuples", b"\x80\x02U\x01x\x85q\x000" + b"h\x00h\x00\x86q\x000" * 60 +
             b"}h\x00K\x01s.", "tuple is no name"),
    _archive("a frame without end", b"\x80\x04\x95" + (1 << 40).to_bytes(8, "little") + b"N.",
             "NoneType"),
    _legacy("torch before 1.6, 3 million lists", b"\x80\x02(" + b"]" * 3_000_000 + b"t.",
            "pickles have more"),
    _legacy("torch before 1.6, keys of one hash", _collisions(), "keys", "pickles have more"),
    _archive("a negative offset", _tensor(_MINUS, b"K\x01", b"K\x01"), "negative", kind=_REACH,
             **_EIGHT),
    _archive("a negative stride", _tensor(b"K\x01", b"K\x02", _MINUS), "negative", kind=_REACH,
             **_EIGHT),
    _archive("a negative size", _tensor(b"K\x00", _MINUS, b"K\x01"), "negative", kind=_REACH,
             **_EIGHT),
    _archive("behind its storage", _tensor(b"K\x09", b"K\x01", b"K\x01"), "reaches out",
             kind=_REACH, **_EIGHT),
    _archive("a stride of 2^61", _tensor(b"K\x00", b"K\x02", _HUGE), "reaches out", kind=_REACH,
             **_EIGHT),
    _archive("a size of 2^61", _tensor(b"K\x00", _HUGE, b"K\x01"), "its memory", kind=_REACH,
             **_EIGHT),
    _archive("a storage of 2^61", _tensor(b"K\x00", b"K\x01", b"K\x01", _HUGE), "has 8 bytes",
             kind=_REACH, **_EIGHT),
    _archive("a storage of -1", _tensor(b"K\x00", b"K\x01", b"K\x01", _MINUS), "persistent",
             kind=_REACH, **_EIGHT),
    _archive("a storage that is not there", _tensor(b"K\x00", b"K\x01", b"K\x01"), "no entry",
             kind=_REACH),
    _archive("a call", b"\x80\x02cposix\nsystem\n(U\x04truetR.", "posix.system", kind=_REACH),
    _archive("a call of what was handed out", b"\x80\x02ctorch\nSize\n}U\x01xNsb.", "writes into",
             kind=_REACH),
    _archive("a registered extension", b"\x80\x02\x82\x01.", "extension", kind=_REACH),
]  # fmt: skip
