"""The loaders' benchmark times only right batches, of shards that are the same each time."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from benchmarks import data_throughput
from benchmarks.parts.common.contest import NotMeasured
from benchmarks.parts.common.harness import CheckFailed
from benchmarks.parts.common.rows import read_file
from benchmarks.parts.data import check
from benchmarks.parts.data.contenders import CONTENDERS, Setting
from benchmarks.parts.data.pictures import Pictures, make
from clipfast.data.reader import ShardReader
from tests.peers import import_open_clip

MADE = Pictures("sample", (160, 128), 20)


def digests(paths: list[str]) -> list[str]:
    return [hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in paths]


def test_data_throughput_makes_the_same_shards_each_time(tmp_path):
    first = make(MADE, tmp_path / "a", tmp_path)
    assert digests(first) == digests(make(MADE, tmp_path / "b", tmp_path))
    reader = ShardReader(first)
    assert sum(len(reader.table(shard)) for shard in range(len(first))) == MADE.count
    assert all(reader.table(shard).checked for shard in range(len(first)))
    # They are kept: what is there is not made again.
    Path(first[0]).write_bytes(b"kept")
    assert make(MADE, tmp_path / "a", tmp_path) == first
    assert Path(first[0]).read_bytes() == b"kept"


def test_data_throughput_says_how_to_get_pictures(tmp_path):
    with pytest.raises(NotMeasured, match="apt-get install openclipart-png"):
        make(Pictures("openclipart", (64, 64), 1), tmp_path, tmp_path)


def test_data_throughput_enlarges_the_sample_where_there_is_nothing_else(tmp_path):
    def names(*options: str) -> list[str]:
        parsed = data_throughput.build_parser().parse_args(["--root", str(tmp_path), *options])
        return [pictures.name for pictures, _, _ in data_throughput.sets_of(parsed)]

    made = [f"sample, enlarged, {size}" for size in ("640 x 512", "1280 x 1024")]
    assert names() == ["sample, 64 x 64", *made]
    drawings = tmp_path / "usr/share/openclipart/png/a"
    drawings.mkdir(parents=True)
    (drawings / "drawing.png").write_bytes(b"")
    assert names("--sizes", "640") == ["sample, 64 x 64", "openclipart, 640 x 512"]
    assert names("--pictures", "photographs", "--sizes", "640") == ["photographs, 640 x 512"]


@pytest.mark.parametrize("key", ["clipfast", "clipfast-scaled"])
def test_data_throughput_checks_pixels_and_tokens(tmp_path, monkeypatch, key):
    import_open_clip()
    setting = Setting(tuple(make(MADE, tmp_path, tmp_path)), 32, 8, 1)
    errors = check.check(CONTENDERS[key], setting)
    assert (errors["mean_difference"] > 0.1) == (key == "clipfast-scaled")
    monkeypatch.setattr(check, "captions_of", lambda setting, places: ["wrong"] * len(places))
    with pytest.raises(CheckFailed, match="tokens differ"):
        check.check(CONTENDERS[key], setting)
    monkeypatch.setattr(check, "MEAN", (0.9, 0.9, 0.9))
    with pytest.raises(CheckFailed, match="differs from Pillow's"):
        check.check(CONTENDERS[key], setting)


def test_data_throughput_times_loaders_in_processes_of_their_own(tmp_path, capsys):
    import_open_clip()
    path = tmp_path / "rows.jsonl"
    options = ["--device", "cpu", "--pictures", "sample", "--sizes", "--cores", "1", "--runs", "1"]
    options += ["--seconds", "0.05", "--contenders", "clipfast", "dataloader", "--json", str(path)]
    data_throughput.main([*options, "--plot", str(tmp_path / "plot.png")])
    ours, theirs = read_file(path)
    assert (ours["contender"], theirs["contender"]) == ("clipfast", "dataloader")
    assert ours["error_pixels"] < 0.6 / 255
    for row in (ours, theirs):
        assert (row["pictures"], row["image_size"], row["cores"]) == ("sample, 64 x 64", 64, 1)
        assert 0 < row["cpu_us_per_image"] < 1e5
        assert f"{row['items_per_core_s']:,.0f}" in capsys.readouterr().out or row is theirs
    assert theirs["ratio_to_clipfast"] > 0
    assert theirs["cpu_ratio_to_clipfast"] > 0
    assert (tmp_path / "plot.png").stat().st_size > 1000
