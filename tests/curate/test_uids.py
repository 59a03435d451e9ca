"""uids: a file of DataComp's uids against a set of strings, from tars and from tables."""

import io
import json
import random
import tarfile
from pathlib import Path

import numpy as np
import pytest

from clipfast.curate import main
from clipfast.curate.uids import subset as subset_module
from clipfast.curate.uids.subset import DTYPE, Subset
from clipfast.data.index import index_shards
from clipfast.data.selection import read_selection
from tests.curate.shards import png

pytestmark = pytest.mark.needs("pyarrow", "ftfy")

SIZES = (7, 1, 12)


def names(draw: random.Random, count: int) -> list[str]:
    """Uids; many of them share one half with others."""
    few = [0, 1, 2**63, 2**64 - 1]
    halves = [draw.choice([*few, draw.getrandbits(64)]) for _ in range(2 * count)]
    return [f"{halves[i]:016x}{halves[i + 1]:016x}" for i in range(0, 2 * count, 2)]


def save(path: Path, uids: list[str]) -> str:
    """As DataComp's own tools write such a file."""
    found = np.array([(int(u[:16], 16), int(u[16:], 16)) for u in uids], np.dtype("u8,u8"))
    found.sort()
    np.save(path, found)
    return str(path)


@pytest.fixture
def shards(tmp_path):
    """Shards, and the uid of each row; None: it has none."""
    draw = random.Random(7)
    uids: dict[str, list[str | None]] = {}
    image = png()
    for number, size in enumerate(SIZES):
        rows: list[str | None] = list(names(draw, size))
        with tarfile.open(tmp_path / f"{number}.tar", "w") as tar:
            for row, uid in enumerate(rows):
                told = json.dumps({"uid": uid.upper() if row % 2 else uid, "url": "?"}).encode()
                members = {"png": image, "txt": b"words", "json": told}
                if row % 5 == 3:
                    rows[row], members["json"] = None, [b'{"uid": "12"}', b"{", b"{}"][row // 5 % 3]
                if row == 6:
                    rows[row] = None
                    del members["json"]
                if row == 5:
                    del members["txt"]  # no sample of training
                for ending, data in members.items():
                    member = tarfile.TarInfo(f"{number}{row:04d}.{ending}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        uids[f"{number}.tar"] = [uid for row, uid in enumerate(rows) if row != 5]
    return tmp_path, uids


def kept(folder: Path, file: str, *options: str) -> dict[str, list[int]]:
    out = str(folder / "out.parquet")
    assert (
        main(["uids", file, str(folder / "*.tar"), "--out", out, "--workers", "1", *options]) == 0
    )
    return {choice.shard: choice.rows().tolist() for choice in read_selection(out).choices}


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("tables", [False, True])
def test_uids_keep_what_a_set_of_strings_holds(shards, capsys, indexed, tables):
    folder, uids = shards
    options = []
    if tables:
        import pyarrow as pa
        import pyarrow.parquet

        for name, rows in uids.items():
            number = name.partition(".")[0]
            keys = [f"{number}{row + (row >= 5):04d}" for row in range(len(rows))]
            table = pa.table({"key": [*keys, "lost"], "name": [*rows, "0" * 32]})
            pa.parquet.write_table(table, folder / f"{number}.parquet")
        options = ["--uid-files", "{shard}.parquet", "--uid", "name"]
        options += ["--caption-cache", str(folder / "cache")]
    if indexed:
        index_shards(sorted(map(str, folder.glob("*.tar"))), workers=1, dali=False, progress=False)
    draw = random.Random(1)
    there = [uid for rows in uids.values() for uid in rows if uid]
    wanted = sorted({*draw.sample(there, 9), *names(draw, 30)} - {there[0]})
    expected = {
        name: [row for row, uid in enumerate(rows) if uid in wanted] for name, rows in uids.items()
    }
    assert kept(folder, save(folder / "some.npy", wanted), *options) == expected
    printed = capsys.readouterr().out
    missing = sum(uid is None for rows in uids.values() for uid in rows)
    assert f"are among {len(wanted):,} uids" in printed
    assert f"{missing} samples have no uid and are left out" in printed
    # What the work leaves serves another file too, such as one without any uid.
    assert kept(folder, save(folder / "none.npy", []), *options) == {name: [] for name in uids}


def test_uids_are_found_like_in_a_set_whatever_their_halves(tmp_path):
    draw = random.Random(3)
    few = [0, 1, 5, 2**63, 2**64 - 1]
    for size in (1, 2, 3, 17, 24):
        known = draw.sample([(a, b) for a in few for b in few], size)
        found = Subset(save(tmp_path / "a.npy", [f"{a:016x}{b:016x}" for a, b in known]), "a")
        asked = [(a + x, b) for a in few for b in few for x in (0, 1) if a + x < 2**64]
        high, low = np.array(asked, np.uint64).T
        assert found.holds(high, low).tolist() == [each in known for each in asked]


def test_uids_of_another_kind_or_order_are_refused(shards, capsys, monkeypatch):
    folder, _ = shards
    file = folder / "wrong.npy"
    file.write_bytes(b"no numpy")
    out = ["--out", str(folder / "out"), "--workers", "1"]

    def said() -> str:
        assert main(["uids", str(file), str(folder / "*.tar"), *out]) == 1
        return capsys.readouterr().err

    assert "is no file that numpy.save has written" in said()
    np.save(file, np.arange(4))
    assert "expected a list of the type 'u8,u8', as DataComp publishes them, got int64" in said()
    monkeypatch.setattr(subset_module, "_CHUNK", 2)
    np.save(file, np.array([(0, 1), (0, 2), (0, 3), (1, 0), (0, 9)], DTYPE))
    assert "is not sorted, from uid 4 on" in said()
    out += ["--uid", "other"]
    save(file, ["0" * 32])
    assert "none of 18 samples has 32 hexadecimal digits under 'other'" in said()
