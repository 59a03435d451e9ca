"""Weights with values, types or memory that no model has, and files that were cut."""

import math
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.campaigns.weights_kinds import File, State, saved

_VALUES = "values"
_TENSORS = "kinds of tensors"
_CUT = "cut or inconsistent"
_NAME = "visual.proj"


def _value(name: str, value: float, word: str) -> File:
    def content(state: State) -> State:
        state[_NAME][3, 5] = value
        return state

    return saved(_VALUES, name, content, word)


def _last(name: str, value: float, word: str) -> File:
    """In the last tensor, so that others would have been filled before."""

    def make(folder: Path, state: State) -> Path:
        state = {**state, list(state)[-1]: torch.full_like(list(state.values())[-1], value)}
        save_file({n: t.contiguous() for n, t in state.items()}, folder / "model.safetensors")
        return folder / "model.safetensors"

    return File(_VALUES, name, make, (word,))


def _tensor(name: str, make: Callable[[Tensor], Tensor], *words: str, last: bool = False) -> File:
    def content(state: State) -> State:
        key = list(state)[-1] if last else _NAME
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return {**state, key: make(state[key])}

    return saved(_TENSORS, name, content, *words)


def _cut(name: str, share: float, *words: str, suffix: str = ".pt", zipped: bool = True) -> File:
    def make(folder: Path, state: State) -> Path:
        path = folder / f"model{suffix}"
        if suffix == ".safetensors":
            save_file(state, path)
        else:
            torch.save(state, path, _use_new_zipfile_serialization=zipped)
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * share)])
        return path

    return File(_CUT, name, make, words)


def _edited(name: str, edit: Callable[[str, bytes], bytes | None], *words: str) -> File:
    """A file of `torch.save` with other entries."""

    def make(folder: Path, state: State) -> Path:
        torch.save(state, folder / "whole.pt")
        path = folder / "model.pt"
        with zipfile.ZipFile(folder / "whole.pt") as old, zipfile.ZipFile(path, "w") as new:
            for entry in old.namelist():
                data = edit(entry, old.read(entry))
                if data is not None:
                    new.writestr(entry, data)
        (folder / "whole.pt").unlink()
        return path

    return File(_CUT, name, make, words)


def _larger_storage(entry: str, data: bytes) -> bytes:
    """The pickle's first float storage claims 2^30 numbers, as does its tensor."""
    if not entry.endswith("data.pkl"):
        return data
    # logit_scale: one number, (1,), (1,)
    one = data.index(b"X\x03\x00\x00\x00cpu")
    place = data.index(b"K\x01", one)
    return data[:place] + b"J\x00\x00\x00\x40" + data[place + 2 :]


def _flipped(share: float) -> File:
    """One bit of the weights is another one."""

    def make(folder: Path, state: State) -> Path:
        path = folder / "model.pt"
        torch.save(state, path)
        data = bytearray(path.read_bytes())
        data[int(len(data) * share)] ^= 1
        path.write_bytes(data)
        return path

    return File(_CUT, f"a bit flipped after {share:.0%}", make, ("checksum",))


DAMAGED: list[File] = [
    _value("NaN", math.nan, "NaN"),
    _value("infinity", math.inf, "infinity"),
    _value("minus infinity", -math.inf, "infinity"),
    _last("NaN in the last tensor, safetensors", math.nan, "NaN"),
    _tensor("float64 that overflows", lambda t: t.double() * 1e300, "too large"),
    _tensor("bool", lambda t: t > 0, "torch.bool"),
    _tensor("int8", lambda t: t.to(torch.int8), "torch.int8"),
    _tensor("uint8, last", lambda t: t.to(torch.uint8), "torch.uint8", last=True),
    _tensor("int64", lambda t: t.to(torch.int64), "torch.int64"),
    _tensor("float8", lambda t: t.to(torch.float8_e4m3fn), "float8"),
    _tensor("complex64", lambda t: t.to(torch.complex64), "complex64"),
    _tensor("complex128, last", lambda t: t.to(torch.complex128), "complex128", last=True),
    _tensor("meta", lambda t: t.to("meta"), "without memory"),
    _tensor("meta, last", lambda t: t.to("meta"), "without memory", last=True),
    _tensor("quantised", lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "quantised"),
    _tensor("quantised by channel", lambda t: torch.quantize_per_channel(
        t, torch.ones(len(t)), torch.zeros(len(t)), 0, torch.qint8), "quantised"),
    _tensor("sparse", lambda t: t.to_sparse(), "sparse"),
    _tensor("sparse rows", lambda t: t.to_sparse_csr(), "sparse"),
    _tensor("nested", lambda t: torch.nested.nested_tensor([t, t[:1]]), "nested"),
    _tensor("expanded without end", lambda t: t[:1, :1].expand(1 << 20, 1 << 20), "its memory"),
    _tensor("expanded to the shape", lambda t: t[:1, :1].clone().expand(t.shape), "its memory"),
    _tensor("empty", lambda t: t[:0], "another shape"),
    _tensor("without dimensions", lambda t: t[0, 0], "another shape"),
    _cut("half a zip", 0.5, "cut", "PK", "damaged", "begins", "directory"),
    _cut("a byte less", 0.99999, "directory", "damaged", "begins", "PK"),
    _cut("half of torch before 1.6", 0.5, "larger", "large", zipped=False),
    _cut("half of safetensors", 0.5, "safetensors", suffix=".safetensors"),
    _cut("a header of safetensors", 0.001, "safetensors", suffix=".safetensors"),
    *(_flipped(share) for share in (0.1, 0.5, 0.9)),
    _edited("a storage is missing", lambda n, d: None if n.endswith("data/3") else d, "no entry"),
    _edited("a storage is short", lambda n, d: d[:-4] if n.endswith("data/3") else d, "has"),
    _edited("a storage is long", lambda n, d: d + d if n.endswith("data/3") else d, "has"),
    _edited("a storage that claims more than the file", _larger_storage, "two sizes", "has"),
    _edited("no pickle", lambda n, d: None if n.endswith("data.pkl") else d, "zip that torch"),
    _edited("half a pickle", lambda n, d: d[:99] if n.endswith("data.pkl") else d, "cannot read"),
    _edited("big-endian", lambda n, d: b"big" if n.endswith("byteorder") else d, "big-endian"),
]  # fmt: skip
