"""TorchScript archives, as OpenAI released them, read through their tensors alone."""

from __future__ import annotations

import pickle
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from clipfast.models import CLIP, load_weights
from clipfast.models.torchscript import is_torchscript, read_torchscript
from clipfast.models.zips import entry_names
from tests.models.helpers import random_images, random_tokens, small_model


def save_archive(model: CLIP, path: Path) -> torch.jit.ScriptModule:
    """Trace a model with OpenAI's three facts as buffers, cast it to fp16 and save it."""
    model = model.eval()
    model.register_buffer("input_resolution", torch.tensor(64))
    model.register_buffer("context_length", torch.tensor(77))
    model.register_buffer("vocab_size", torch.tensor(500))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        inputs = (random_images(2, 64), random_tokens(2, 77, 500))
        traced = torch.jit.trace(model, inputs, check_trace=False).half()
        torch.jit.save(traced, str(path))
    return traced


def rewrite(source: Path, target: Path, edit: Callable[[str, bytes], bytes | None]) -> None:
    """Copy a zip, each entry replaced by what `edit` returns, or left out for None."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = edit(name, old.read(name))
            if data is not None:
                new.writestr(name, data)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("archive") / "RN-tiny.pt"
    save_archive(small_model("RN-tiny"), path)
    return path


@pytest.mark.parametrize("name", ["RN-tiny", "ViT-tiny"])
def test_load_weights_reads_a_half_precision_archive_into_fp32(name: str, tmp_path: Path) -> None:
    traced = save_archive(small_model(name, seed=0), tmp_path / "model.pt")
    expected = traced.state_dict()
    assert read_torchscript(tmp_path / "model.pt").tensors.keys() == expected.keys()
    model = small_model(name, seed=1)
    load_weights(model, tmp_path / "model.pt")
    for key, tensor in model.state_dict().items():
        wanted = expected[key].to(tensor.dtype)
        assert tensor.dtype in (torch.float32, torch.int64)
        assert torch.equal(tensor, wanted), key


@pytest.mark.filterwarnings("ignore:.*torch.jit.load:DeprecationWarning")
def test_read_torchscript_equals_jit_load(archive: Path) -> None:
    expected = torch.jit.load(str(archive)).state_dict()
    actual = read_torchscript(archive).tensors
    assert actual.keys() == expected.keys()
    for key, tensor in expected.items():
        assert actual[key].dtype == tensor.dtype, key
        assert torch.equal(actual[key], tensor), key


def test_read_torchscript_keeps_views_of_one_storage(tmp_path: Path) -> None:
    class Views(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            whole = torch.arange(24.0).view(4, 6)
            self.register_buffer("part", whole[1:3, 2:])
            self.register_buffer("turned", whole.t())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.part.sum() + self.turned.sum()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(Views()), str(tmp_path / "views.pt"))
    tensors = read_torchscript(tmp_path / "views.pt").tensors
    whole = torch.arange(24.0).view(4, 6)
    assert torch.equal(tensors["part"], whole[1:3, 2:])
    assert torch.equal(tensors["turned"], whole.t())


def test_is_torchscript_tells_archives_from_other_files(archive: Path, tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1)}, tmp_path / "plain.pt")
    (tmp_path / "text.pt").write_text("no zip")
    assert is_torchscript(entry_names(archive))
    assert not is_torchscript(entry_names(tmp_path / "plain.pt"))
    assert entry_names(tmp_path / "text.pt") is None


def test_load_weights_never_runs_an_archive(archive: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple:
            return (shutil.copy, (str(archive), str(tmp_path / "sprung")))

    trap = pickle.dumps(Trap(), protocol=2)
    rewrite(archive, tmp_path / "trap.pt", lambda n, d: trap if n.endswith("/data.pkl") else d)
    with pytest.raises(ValueError, match=r"it asks for shutil\.copy, which no weights need"):
        load_weights(small_model("RN-tiny"), tmp_path / "trap.pt")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda n, d: d[:-2] if n.endswith("/data/0") else d, "storage 0 has .* bytes, not"),
        (lambda n, d: None if n.endswith("/data/0") else d, "it has no entry .*data/0"),
        (lambda n, d: None if n.endswith("/data.pkl") else d, "cannot read the TorchScript"),
        (lambda n, d: d[:99] if n.endswith("/data.pkl") else d, "cannot read the TorchScript"),
        (lambda n, d: b"big" if n.endswith("byteorder") else d, "big-endian"),
    ],
    ids=["short storage", "no storage", "no pickle", "half a pickle", "big-endian"],
)
def test_load_weights_refuses_a_damaged_archive(
    edit: Callable, message: str, archive: Path, tmp_path: Path
) -> None:
    rewrite(archive, tmp_path / "bad.pt", edit)
    with pytest.raises(ValueError, match=message):
        load_weights(small_model("RN-tiny"), tmp_path / "bad.pt")


def test_read_torchscript_refuses_a_view_beyond_its_storage(tmp_path: Path) -> None:
    # _rebuild_tensor_v2(storage of 2 floats, offset 0, size (100,), stride (1,), False, {})
    tree = (
        b"\x80\x02c__torch__\nM\n)\x81}U\x01wctorch._utils\n_rebuild_tensor_v2\n("
        b"(U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x02tQK\x00K\x64\x85K\x01\x85"
        b"I00\n}tRsb."
    )
    with zipfile.ZipFile(tmp_path / "beyond.pt", "w") as file:
        file.writestr("m/data.pkl", tree)
        file.writestr("m/constants.pkl", b"")
        file.writestr("m/data/0", b"\0" * 8)
    with pytest.raises(ValueError, match="larger than its memory"):
        read_torchscript(tmp_path / "beyond.pt")
