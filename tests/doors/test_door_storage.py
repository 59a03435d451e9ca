"""The door of storages: a scheme ``mem://`` added from outside the package, in this one file.

Pack writes shards there, the indexer indexes them, and the loader trains from them with the same
order, crops and bits as from files.
"""

from __future__ import annotations

import ast
import io
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import clipfast.data
import clipfast.storage
from clipfast import storage
from clipfast.data import EvalLoader, TrainLoader, index, pack, shards
from clipfast.storage import Listed, Storage

SAMPLES = 23


class MemoryStorage(Storage):
    """Objects in a dictionary, written at counted times."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, int]] = {}

    def _object(self, path: str) -> tuple[bytes, int]:
        if path not in self.objects:
            raise FileNotFoundError(2, "no such object", path)
        return self.objects[path]

    def list(self, folder: str) -> list[Listed]:
        prefix = folder if folder.endswith("/") else folder + "/"
        rests = [path[len(prefix) :] for path in self.objects if path.startswith(prefix)]
        folders = {rest.split("/")[0] for rest in rests if "/" in rest}
        files = [Listed(rest) for rest in rests if "/" not in rest]
        return [*files, *(Listed(name, is_folder=True, is_file=False) for name in folders)]

    def size(self, path: str) -> int:
        return len(self._object(path)[0])

    def modified(self, path: str) -> int:
        return self._object(path)[1]

    def read_at(self, path: str, offset: int, size: int) -> bytes:
        return self._object(path)[0][offset : offset + size]

    def write_atomic(self, path: str, data: bytes) -> None:
        self.objects[path] = (data, time.time_ns())

    def remove(self, path: str) -> None:
        self.objects.pop(path, None)


@pytest.fixture
def memory(monkeypatch) -> Iterator[MemoryStorage]:
    monkeypatch.setattr(storage, "_storages", storage.registered())
    held = MemoryStorage()
    storage.register("mem", held)
    return held


@pytest.fixture
def pictures(tmp_path) -> Path:
    """A table of images, two of which are unfit."""
    y, x = np.mgrid[0:40, 0:56]
    lines = ["file,caption\n"]
    for i in range(SAMPLES):
        image = Image.fromarray(np.stack([x * 4, y * 6, 0 * x + 11 * i], -1).astype(np.uint8))
        image.save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,picture {i}\n")
    (tmp_path / "bad.png").write_bytes(b"<html>")
    lines += ["bad.png,page\n", f"0.png,{' '}\n"]
    (tmp_path / "t.csv").write_text("".join(lines))
    return tmp_path


def take(loader, steps: int) -> list:
    return list(itertools.islice(loader, steps))


def pack_both(pictures: Path, workers: str = "1") -> tuple[str, str]:
    """Pack one table into files and into memory."""
    outputs = (str(pictures / "out"), "mem://bucket/out")
    for output in outputs:
        options = ["--output", output, "--shard-size", "9", "--workers", workers]
        assert pack.main([str(pictures / "t.csv"), *options]) == 0
    return outputs


def test_storage_from_outside_packs_indexes_and_trains_as_files_do(memory, pictures, capsys):
    files, bucket = pack_both(pictures)
    out = capsys.readouterr().out
    assert "report: mem://bucket/out/pack_report.tsv" in out
    assert "--data.train 'mem://bucket/out/{00000..00002}.tar'" in out
    held = {path.rsplit("/", 1)[1]: data for path, (data, _) in memory.objects.items()}
    assert held == {path.name: path.read_bytes() for path in Path(files).iterdir()}
    assert set(held) == {f"0000{i}.{e}" for i in range(3) for e in ("tar", "idx")} | {
        "pack_report.tsv"
    }

    for path in [p for p in memory.objects if p.endswith(".idx")]:
        del memory.objects[path]
    assert len(shards.read_table(f"{bucket}/00000.tar")) == 9
    assert index.main([f"{bucket}/*.tar", "--workers", "1"]) == 0
    assert "23 good" in capsys.readouterr().out
    for i in range(3):
        assert memory.read(f"{bucket}/0000{i}.idx") == held[f"0000{i}.idx"]
    assert index.index_shards(shards.expand(f"{bucket}/*.tar")).skipped == 3

    pattern = "{00000..00002}.tar"
    pair = [TrainLoader(f"{f}/{pattern}", 16, 4, seed=3) for f in (files, bucket)]
    for ours, theirs in zip(*(take(loader, 13) for loader in pair), strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.tokens, theirs.tokens)
        assert np.array_equal(ours.shard, theirs.shard)
        assert np.array_equal(ours.row, theirs.row)
        assert (ours.epoch, ours.index) == (theirs.epoch, theirs.index)
    assert pair[0].state_dict() == pair[1].state_dict()
    pair = [EvalLoader(f"{f}/**/*.tar", 16, 8) for f in (files, bucket)]
    for ours, theirs in zip(*map(list, pair), strict=True):
        assert torch.equal(ours.images, theirs.images)


def test_storage_reaches_worker_processes(memory, pictures):
    _, bucket = pack_both(pictures)
    found = shards.expand(f"{bucket}/*.tar")
    before = {path: memory.read(path) for path in memory.objects if path.endswith(".idx")}
    summary = index.index_shards(found, workers=2, force=True)
    assert (summary.good, summary.failed) == (SAMPLES, 0)
    assert {path: memory.read(path) for path in before} == before


def test_pack_reads_a_table_and_a_folder_from_a_storage(memory, pictures):
    for path in pictures.iterdir():
        memory.write_atomic(f"mem://in/{path.name}", path.read_bytes())
    for number in range(SAMPLES):
        memory.write_atomic(f"mem://in/{number}.txt", f"picture {number}".encode())
    for source, output in (("mem://in/t.csv", "mem://a"), ("mem://in/", "mem://b/")):
        options = ["--output", output, "--workers", "1", "--shuffle-seed", "None"]
        assert pack.main([source, *options]) == 0
        table = shards.read_table(f"{output.rstrip('/')}/00000.tar")
        assert len(table) == SAMPLES


def test_pack_force_leaves_no_shard_of_an_earlier_run(memory, pictures):
    _, bucket = pack_both(pictures)
    options = ["--output", bucket, "--workers", "1"]
    assert pack.main([str(pictures / "t.csv"), *options]) == 1
    assert pack.main([str(pictures / "t.csv"), *options, "--force"]) == 0
    assert [path for path in memory.objects if path.endswith(".tar")] == [f"{bucket}/00000.tar"]


def test_errors_name_the_path_of_the_storage(memory, pictures):
    _, bucket = pack_both(pictures)
    shard = f"{bucket}/00001.tar"
    with pytest.raises(FileNotFoundError, match=r"1 of 4 .*: mem://bucket/out/00003\.tar"):
        shards.expand(bucket + "/{00000..00003}.tar")
    with pytest.raises(FileNotFoundError, match=r"'mem://bucket/x\*\.tar' matched nothing"):
        shards.expand("mem://bucket/x*.tar")
    assert shards.expand("mem://bucket/out") == shards.expand("mem://bucket/out/*.tar")
    with pytest.raises(ValueError, match="named twice"):
        shards.expand([shard, f"{bucket}/*.tar"])
    whole = memory.read(shard)
    memory.write_atomic(shard, whole[:3000])
    with pytest.raises(ValueError, match=r"'mem://bucket/out/00001\.idx' does not fit its shard"):
        shards.read_table(shard)
    memory.remove(shards.index_path(shard))
    with pytest.raises(ValueError, match=r"'mem://bucket/out/00001\.tar' is truncated"):
        shards.read_table(shard)
    table = shards.read_table(f"{bucket}/00000.tar")
    memory.write_atomic(f"{bucket}/00000.tar", whole[:600])
    with pytest.raises(ValueError, match=r"'mem://bucket/out/00000\.tar' ends at byte 600"):
        shards.ShardFiles([f"{bucket}/00000.tar"]).pread(0, int(table.image_offset[0]), 2000)
    with pytest.raises(ValueError, match="'tape://' is not read"):
        shards.expand("tape://bucket/a.tar")
    with pytest.raises(ValueError, match="expected a scheme"):
        storage.register("mem://", memory)


def test_broken_sample_of_a_storage_is_named(memory, pictures):
    buffer = io.BytesIO()
    Image.new("RGB", (50, 50)).save(buffer, "JPEG")
    writer = pack.ShardWriter("mem://bad", 4)
    for _ in range(4):
        writer.add(buffer.getvalue()[:-300], "jpg", b"cut")
    writer.finish()
    with pytest.raises(ValueError, match=r"of shard mem://bad/00000\.tar.*data\.index mem://bad"):
        take(TrainLoader("mem://bad/00000.tar", 16, 4), 1)


def test_only_the_storage_of_files_touches_the_file_system():
    """The sources of all other modules of the package import nothing and call nothing that does."""
    folders = [Path(each.__file__).parent for each in (clipfast.data, clipfast.storage)]
    data, places = folders
    forbidden = {"os", "glob", "pathlib", "shutil", "tempfile", "mmap", "fcntl"}
    # The first is the file system's module; copies are on a disk; the third reads the environment,
    # for credentials; then, what counts cores, and looks for programs and recipes, never for data;
    # and joined tables of captions, which a machine maps from its own disk.
    allowed = {places / name for name in ("local.py", "cache.py", "clients.py")}
    # What goes between a disk and a store.
    allowed |= {places / "nearby.py", places / "transfer.py"}
    allowed |= {data / "sidecar" / name for name in ("join.py", "joined.py")}
    allowed |= {data / "workers.py", data / "packnext.py"}
    pure = {"PathLike", "fspath"}
    sources = [path for folder in folders for path in folder.rglob("*.py") if path not in allowed]
    assert len(sources) > 20
    found = []
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text())):
            names: set[str] = set()
            if isinstance(node, ast.Import):
                names = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                if not {alias.name for alias in node.names} <= pure:
                    names = {(node.module or "").split(".")[0]}
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                names = {"os"} if node.func.id == "open" else set()
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                names = {"os"} if (node.value.id, node.attr) == ("io", "open") else set()
            found += [f"{path.name}:{node.lineno}" for name in names if name in forbidden]
    assert not found
