"""Weights from a stranger: nothing in them runs, and each refusal is a ValueError with the file."""

from __future__ import annotations

import copy
import json
import os
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from clipfast.models import CLIP, create_model, export, load_weights, read_metadata
from tests.models.helpers import small_model
from tests.models.test_torchscript import save_archive
from tests.models.test_weights import assert_same_state


class Trap:
    """Leaves a file where it is unpickled as code."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.mark),))


@pytest.fixture(scope="module")
def model() -> CLIP:
    return small_model("ViT-tiny")


def refused(path: Path, model: CLIP, message: str) -> None:
    """Every reader refuses the file, names it, and says why in a few lines."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for read in (lambda p: load_weights(model, p), create_model.from_file):
        with pytest.raises(ValueError, match=message) as error:
            read(path)
        assert str(path) in str(error.value) or str(path.parent) in str(error.value)
        assert len(str(error.value)) < 1500
        assert "weights_only=False" not in str(error.value)
    assert_same_state(model.state_dict(), before)


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".pth", ".ckpt", ".txt", "", ".pt.bak"])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("where", ["value", "nested", "optimizer", "key"])
def test_a_pickle_that_calls_code_is_refused(
    where: str, zipped: bool, suffix: str, tmp_path: Path, model: CLIP
) -> None:
    trap, weight = Trap(tmp_path / "sprung"), torch.ones(2)
    content: Any = {
        "value": {"logit_scale": trap},
        "nested": {"state_dict": {"a": weight, "b": [{"c": (trap,)}]}},
        "optimizer": {"state_dict": {"logit_scale": weight}, "optimizer": trap},
        "key": {("x", trap): weight},
    }[where]
    path = tmp_path / f"model{suffix}"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    refused(path, model, r"it asks for (posix|nt)\.mkdir, which no weights need")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", ["model.pt", "model.bin", "model.safetensors"])
def test_a_bare_pickle_is_refused(name: str, protocol: int, tmp_path: Path, model: CLIP) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(Trap(tmp_path / "sprung"), protocol))
    refused(tmp_path / name, model, "cannot read .* as a (file of torch.save|safetensors file)")
    assert not (tmp_path / "sprung").exists()


def archive(path: Path, tree: bytes, **entries: bytes) -> Path:
    """A TorchScript archive whose modules are the pickle `tree`."""
    with zipfile.ZipFile(path, "w") as file:
        for name, data in {"data.pkl": tree, "constants.pkl": b"", **entries}.items():
            file.writestr(f"m/{name}", data)
    return path


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (b"cposix\nsystem\n(S'true'\ntR.", r"asks for posix\.system"),
        (b"cbuiltins\neval\n(S'1'\ntR.", r"asks for builtins\.eval"),
        (b"ctorch._utils\n_rebuild_sparse_tensor\n.", "holds a _Function, not a module"),
        (b"c__torch__.os\nsystem\n(S'true'\ntR}b.", "holds a dict, not a state dict"),
        # Writing into what the reader hands out: a function, a storage's class.
        (b"ctorch\ndevice\n(NS'\\x01'\ntb.", "writes into an object that is not its own"),
        (b"ctorch\ndevice\n(N}S'__kwdefaults__'\n}stb.", "writes into an object"),
        (b"ctorch\nFloatStorage\n}S'dtype'\nNsb.", "writes into an object"),
        # The unknown persistent object is a tuple of tuples: its text would have no end.
        (b"(" + b"(I1\ntq\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"tQ.", "unknown persistent|unpack"),
        (b"\x80\x02" + b"(" * 10**5, "cannot read the TorchScript archive"),
        (b"", "cannot read the TorchScript archive"),
    ],
)
def test_a_torchscript_pickle_is_refused(
    tree: bytes, message: str, tmp_path: Path, model: CLIP
) -> None:
    refused(archive(tmp_path / "model.pt", tree), model, message)


def test_modules_that_contain_each_other_are_refused(tmp_path: Path, model: CLIP) -> None:
    # m = M(); m.a = m.b = m
    tree = b"c__torch__\nM\n)\x81q\x00}(U\x01ah\x00U\x01bh\x00ub."
    refused(archive(tmp_path / "model.pt", b"\x80\x02" + tree), model, "contain each other")


def test_names_whose_text_has_no_end_are_refused(tmp_path: Path, model: CLIP) -> None:
    name: Any = ("x",)
    for _ in range(60):
        name = (name, name)
    # A pickle of it is short, for each pair is remembered.
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as file:
        pairs = b"U\x01x\x85q\x00" + b"h\x00h\x00\x86q\x00" * 60
        file.writestr("m/data.pkl", b"\x80\x02}" + pairs + b"K\x01s.")
        file.writestr("m/version", b"3\n")
        file.writestr("m/byteorder", b"little")
    refused(tmp_path / "model.pt", model, "a tuple is no name of a tensor|cannot read")


@pytest.mark.parametrize("script", [True, False])
def test_a_zip_that_grows_is_refused(script: bool, tmp_path: Path, model: CLIP) -> None:
    with zipfile.ZipFile(tmp_path / "model.pt", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("m/data.pkl", bytes(64 << 20))
        file.writestr("m/constants.pkl" if script else "m/version", b"")
    refused(tmp_path / "model.pt", model, "refused to read .* and its entries claim 67,")


def test_a_zip_whose_entries_overlap_is_refused(tmp_path: Path, model: CLIP) -> None:
    with zipfile.ZipFile(tmp_path / "model.pt", "w") as file:
        file.writestr("m/data.pkl", bytes(1 << 20))
        for i in range(40):
            again = copy.copy(file.filelist[0])
            again.filename = f"m/data/{i}"
            file.filelist.append(again)
    refused(tmp_path / "model.pt", model, "refused to read .* and its entries claim")


@pytest.mark.parametrize("name", ["../../evil.pkl", "/tmp/evil.pkl", "m/../../x", "m\\..\\x"])
def test_a_zip_that_leads_out_of_its_folder_is_refused(
    name: str, tmp_path: Path, model: CLIP
) -> None:
    torch.save(model.state_dict(), tmp_path / "model.pt")
    with zipfile.ZipFile(tmp_path / "model.pt", "a") as file:
        info = zipfile.ZipInfo("m")
        info.filename = name
        file.writestr(info, b"x")
    refused(tmp_path / "model.pt", model, "names files outside: ")


@pytest.mark.parametrize("kind", [".pt", ".old", ".safetensors", ".script"])
def test_a_file_that_was_cut_is_refused(kind: str, tmp_path: Path, model: CLIP) -> None:
    path = tmp_path / f"model{kind}"
    if kind == ".script":
        save_archive(small_model("ViT-tiny"), path)
    elif kind == ".old":
        torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)
    else:
        export(model, path)
    data = path.read_bytes()
    for size in (0, 1, 4, 7, 8, 9, 22, 100, 1000, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(ValueError, match=re.escape(str(path))):
            load_weights(model, path)
    path.write_bytes(data[: len(data) // 2])
    refused(path, model, "cannot read")


def test_paths_that_are_no_files_are_refused(tmp_path: Path, model: CLIP) -> None:
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "loop.pt").symlink_to("loop.pt")
    (tmp_path / "a.pt").symlink_to("b.pt")
    (tmp_path / "b.pt").symlink_to("a.pt")
    (tmp_path / "dangling.pt").symlink_to("nothing")
    os.mkfifo(tmp_path / "pipe.pt")
    for name, message in {
        "empty.pt": "the file is empty",
        "folder.pt": "that is a folder without .*pytorch_model.bin.*; name a file",
        "loop.pt": "there is no such file|levels of symbolic links",
        "a.pt": "there is no such file|levels of symbolic links",
        "dangling.pt": "there is no such file",
        "pipe.pt": "that is no regular file",
        "x" * 300: "File name too long",
        "nul\0byte": "there is no such file",
    }.items():
        refused(tmp_path / name, model, f"no weights at .*({message})")


def safetensors(header: Any, body: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def entry(start: int, end: int, shape: list[int] | None = None, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape or [(end - start) // 4], "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "data",
    [
        safetensors({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)),
        safetensors({"a": entry(0, 8), "b": entry(0, 8)}, bytes(8)),
        safetensors({"a": entry(4, 8)}, bytes(8)),
        safetensors({"a": entry(0, 800)}, bytes(8)),
        safetensors({"a": entry(8, 0)}, bytes(8)),
        safetensors({"a": entry(0, 8, [2**62, 2**62])}, bytes(8)),
        safetensors({"a": entry(0, 8, [2**40])}, bytes(8)),
        safetensors({"a": entry(0, 8, dtype="OBJECT")}, bytes(8)),
        safetensors({"a": entry(0, 8)}, bytes(8), length=2**63),
        safetensors({"a": entry(0, 8)}, bytes(8), length=2**64 - 1),
        safetensors({"a": entry(0, 8)}, bytes(8), length=10**9),
        safetensors(b"[" * 5000),
        safetensors(b"\xff\xfe{}"),
        safetensors([]),
        safetensors({"a": 7}),
    ],
)
def test_safetensors_that_lie_about_themselves_are_refused(
    data: bytes, tmp_path: Path, model: CLIP
) -> None:
    (tmp_path / "model.safetensors").write_bytes(data)
    refused(tmp_path / "model.safetensors", model, "cannot read .* as a safetensors file")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda t: t[:1, :1].expand(1 << 20, 1 << 20),
            r"refused to read .*text_projection \(it is larger than its memory",
        ),
        (lambda t: t.to("meta"), r"refused to read .*text_projection \(without memory\)"),
        (lambda t: t.to_sparse(), r"refused to read .*text_projection \(sparse\)"),
        (
            lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
            r"refused to read .*text_projection \(quantised\)",
        ),
        (lambda t: t.to(torch.complex64), r"refused to read .*text_projection \(torch.complex64\)"),
        (lambda t: t.to(torch.int8), "1 of another kind: text_projection is torch.int8 in the"),
    ],
)
def test_tensors_that_are_none_of_a_model_are_refused(
    make: Callable[[torch.Tensor], torch.Tensor], message: str, tmp_path: Path, model: CLIP
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = {**model.state_dict(), "text_projection": make(model.text_projection.detach())}
        torch.save(state, tmp_path / "model.pt")
        with pytest.raises(ValueError, match=message) as error:
            load_weights(model, tmp_path / "model.pt")
    assert str(tmp_path) in str(error.value)


def write_parts(folder: Path, model: CLIP, suffix: str = ".bin") -> Path:
    """What zero_to_fp32.py writes in two parts; returns the index."""
    save = torch.save
    stem = "pytorch_model"
    if suffix == ".safetensors":
        import safetensors.torch

        save, stem = safetensors.torch.save_file, "model"
    folder.mkdir()
    state = model.state_dict()
    places = {}
    for part in (0, 1):
        name = f"{stem}-{part + 1:05d}-of-00002{suffix}"
        tensors = {n: t for i, (n, t) in enumerate(state.items()) if i % 2 == part}
        save(tensors, folder / name)
        places.update(dict.fromkeys(tensors, name))
    index = folder / f"{stem}{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_load_weights_reads_what_zero_to_fp32_writes(
    suffix: str, tmp_path: Path, model: CLIP
) -> None:
    index = write_parts(tmp_path / "parts", model, suffix)
    for path in (index, index.parent):
        other = small_model("ViT-tiny", seed=1)
        load_weights(other, path)
        assert_same_state(other.state_dict(), model.state_dict())
    assert read_metadata(index) is None
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    for path in (tmp_path, tmp_path / "pytorch_model.bin"):
        other = small_model("ViT-tiny", seed=1)
        load_weights(other, path)
        assert_same_state(other.state_dict(), model.state_dict())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight_map": {"a": "../secret.bin"}}, "refused to follow .*'../secret.bin' is no name"),
        ({"weight_map": {"a": "/etc/passwd"}}, "refused to follow .*'/etc/passwd'"),
        ({"weight_map": {"a": "..\\secret.bin"}}, "refused to follow"),
        ({"weight_map": {"a": ""}}, "refused to follow"),
        ({"weight_map": {"a": ".."}}, "refused to follow"),
        ({"weight_map": {"a": ["x"]}}, "refused to follow"),
        ({"weight_map": {"a": "pytorch_model.bin.index.json"}}, "refused to follow"),
        ({"weight_map": {"a": "absent.bin"}}, "no weights at .*absent.bin: there is no such file"),
        ({"weight_map": {"a": "pytorch_model-00001-of-00002.bin"}}, "lacks what .* says: a"),
        ({"weight_map": []}, "it has no weight_map"),
        ({"weight_map": {}}, "it has no weight_map"),
        ([], "cannot read .* as an index of weights"),
        (b"\xff", "cannot read .* as an index of weights"),
        (b"[" * 10**6, "cannot read .* as an index of weights"),
    ],
)
def test_an_index_of_parts_is_refused(
    content: Any, message: str, tmp_path: Path, model: CLIP
) -> None:
    index = write_parts(tmp_path / "parts", model)
    index.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    (tmp_path / "secret.bin").write_bytes(b"no weights")
    refused(index, model, message)


def test_a_part_that_calls_code_is_refused(tmp_path: Path, model: CLIP) -> None:
    index = write_parts(tmp_path / "parts", model)
    torch.save({"a": Trap(tmp_path / "sprung")}, index.parent / "pytorch_model-00002-of-00002.bin")
    refused(index, model, r"00002-of-00002\.bin .*it asks for posix\.mkdir")
    assert not (tmp_path / "sprung").exists()
