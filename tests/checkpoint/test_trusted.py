"""A checkpoint's files are read and nothing that they bring is run."""

import functools
import hashlib
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from clipfast.checkpoint import Refused, load_trusted, refused_globals
from clipfast.checkpoint.__main__ import main
from clipfast.checkpoint.manifest import Entry, Manifest
from clipfast.engine.deepspeed.files import write_hashed

ENGINE = {"values": torch.arange(10.0), "names": ["a", {"b": (1, 2.5, None, True)}]}


class Call:
    """Pickles as a call."""

    def __init__(self, function, *arguments) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def payloads(canary: Path) -> dict[str, object]:
    touch = f"open({str(canary)!r}, 'w').close()"
    return {
        "exec": Call(exec, touch),
        "eval": Call(eval, touch.replace("; ", ",")),
        "os.system": Call(os.system, f"touch {canary}"),
        "getattr": Call(getattr, "text", "upper"),
        "open": Call(open, str(canary), "w"),
        "import": Call(__import__, "os"),
        "nested pickle": Call(pickle.loads, pickle.dumps(Call(exec, touch))),
        "functools": Call(functools.partial, exec, touch),
        "map": Call(map, exec, [touch]),
    }


@pytest.fixture(params=payloads(Path("canary")))
def hostile(request, tmp_path):
    canary = tmp_path / "canary"
    yield payloads(canary)[request.param]
    assert not canary.exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["top", "inside", "key"])
def test_trusted_refuses_calls_wherever_they_stand(tmp_path, hostile, zipped, place):
    states = {
        "top": hostile,
        "inside": {"module": {"weight": torch.ones(3)}, "optimizer": {"state": [1, hostile]}},
        "key": {"lr_scheduler": (torch.ones(2), {"hook": hostile})},
    }
    path = tmp_path / "state.pt"
    torch.save(states[place], path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(Refused, match=r"state\.pt was refused, nothing of it was run"):
        load_trusted(path)
    assert bool(refused_globals(path)) == zipped


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_trusted_refuses_a_bare_pickle_and_a_damaged_archive(tmp_path, hostile):
    path = tmp_path / "state.pt"
    path.write_bytes(pickle.dumps(hostile))
    with pytest.raises(Refused):
        load_trusted(path)
    torch.save(ENGINE, path)
    whole = path.read_bytes()
    for data in (b"", whole[: len(whole) // 2], b"\0" * 1000, whole[:-30]):
        path.write_bytes(data)
        with pytest.raises(Refused, match="refused"):
            load_trusted(path)


def test_trusted_refuses_an_archive_that_packs_another_pickle(tmp_path, hostile):
    path, packed = tmp_path / "state.pt", tmp_path / "packed.pt"
    torch.save(ENGINE, path)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            target.writestr(name, pickle.dumps(hostile) if name.endswith("data.pkl") else data)
    with pytest.raises(Refused):
        load_trusted(packed)


def test_trusted_reads_what_was_saved(tmp_path):
    path = tmp_path / "state.pt"
    torch.save(ENGINE, path)
    found = load_trusted(path)
    assert torch.equal(found.pop("values"), ENGINE["values"])
    assert found == {"names": ENGINE["names"]}
    assert refused_globals(path) == []


def test_verify_names_what_would_be_refused_though_its_hash_fits(tmp_path, capsys, hostile):
    folder = tmp_path / "run" / "checkpoints" / "step00000003"
    folder.mkdir(parents=True)
    torch.save({"state": hostile}, folder / "a.pt")
    data = (folder / "a.pt").read_bytes()
    entry = Entry(len(data), hashlib.sha256(data).hexdigest())
    Manifest("a", 0, 3, {}, {}, {"a.pt": entry}).write(folder)
    assert main(["list", str(tmp_path / "run")]) == 0
    assert main(["verify", str(tmp_path / "run")]) == 1
    assert "will be refused" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["../a.pt", "/etc/passwd", "", "..", "sub/a.pt", "."])
def test_manifest_names_no_file_outside_its_folder(tmp_path, capsys, name):
    folder = tmp_path / "checkpoints" / "step00000003"
    folder.mkdir(parents=True)
    Manifest("a", 0, 3, {}, {}, {name: Entry(1, "00")}).write(folder)
    assert main(["verify", str(tmp_path)]) == 1
    assert "which is no file of this folder" in capsys.readouterr().out


def test_list_and_verify_tell_of_each_checkpoint(tmp_path, capsys):
    for step, counter in ((10, 1), (20, 0)):
        folder = tmp_path / "checkpoints" / f"step{step:08d}"
        folder.mkdir(parents=True)
        tensors = {"weight/a[0:10]": ENGINE["values"]}
        entry = write_hashed(tensors, folder / "a.safetensors")
        state = {"kept_for_good": True} if step == 10 else {}
        files = {"a.safetensors": entry}
        Manifest("a-run", counter, step, {"ranks": 1}, state, files).write(folder)
    assert main(["verify", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["step00000020", "step00000010"]
    assert all("run a-run" in line and line.endswith("intact") for line in lines)
    assert ["kept for good" in line for line in lines] == [False, True]
    (folder / "a.safetensors").write_bytes(b"")
    assert main(["list", str(tmp_path)]) == 0
    assert main(["verify", str(folder)]) == 1
    assert "a.safetensors has 0 bytes" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "nothing")]) == 2
