"""The text tower's benchmark times only right towers, on the captions that it names."""

from __future__ import annotations

import pytest

from benchmarks import text_tower
from benchmarks.parts.common.rows import read_file
from clipfast.models import CLIP
from tests.peers import import_open_clip

TINY = ["--device", "cpu", "--widths", "512", "--layers", "1", "--batch", "4", "--runs", "1"]


def run(tmp_path, *options: str) -> list[dict]:
    import_open_clip()
    path = tmp_path / "out" / "rows.json"
    text_tower.main([*TINY, "--json", str(path), *options])
    return read_file(path)


# A wrong tower is looked for in fp32, below.
@pytest.mark.parametrize(
    "precisions",
    [["amp_bf16"], pytest.param(["fp32", "amp_bf16"], marks=pytest.mark.thorough)],
    ids=len,
)
def test_text_tower_times_ours_and_open_clips(tmp_path, capsys, precisions):
    picture = tmp_path / "plot.png"
    contenders = ["--contenders", "clipfast", "patched", "openclip"]
    rows = run(tmp_path, "--plot", str(picture), *contenders, "--precisions", *precisions)
    assert len(rows) == len(precisions) * 2 * 3
    assert picture.stat().st_size > 1000
    told = capsys.readouterr().out
    for row in rows:
        assert (row["width"], row["batch"], row["runs"]) == (512, 4, 1)
        limit = 1e-5 if row["precision"] == "fp32" else 0.05
        assert max(row["error_features"], row["error_gradients"]) < limit
        assert f"{row['items_per_s']:,.1f}" in told
        if row["contender"] != "clipfast":
            assert row["ratio_to_clipfast"] > 0
    assert {row["captions"] for row in rows} == {"sample", "web"}
    assert all((row["mean_length"] < 6) == (row["captions"] == "sample") for row in rows)


def test_text_tower_gives_a_wrong_tower_no_row(monkeypatch, tmp_path, capsys):
    right = CLIP.encode_text
    monkeypatch.setattr(CLIP, "encode_text", lambda *args: 1.001 * right(*args))
    options = ["--precisions", "fp32", "--captions", "web", "--contenders", "clipfast", "openclip"]
    with pytest.raises(SystemExit, match="clipfast has no figure for: clipfast"):
        run(tmp_path, *options)
    assert "clipfast: wrong, so not timed" in capsys.readouterr().out
    rows = read_file(tmp_path / "out" / "rows.json")
    assert [row["contender"] for row in rows] == ["openclip"]
