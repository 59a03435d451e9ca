"""near: planted duplicates in small shards, the files it writes, and its page."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from clipfast.curate import main
from clipfast.curate.engine import read_table
from clipfast.curate.near.chosen import choose_detector
from clipfast.curate.near.detectors import open_detector
from clipfast.curate.near.embeddings import Embeddings, matrix
from clipfast.curate.select.within import within
from clipfast.curate.shards import shards_of
from clipfast.data.selection import choose, read_selection, write_selection
from tests.curate.near.test_detectors import smooth
from tests.curate.shards import make_shard
from tests.eval.tiny import tiny_weights

pytestmark = pytest.mark.needs("pyarrow", "scipy", "ftfy")


def png(image: Image.Image, form: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def one(seed: int, side: int = 64) -> Image.Image:
    return Image.fromarray(smooth(seed, side, side))


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """0: a, its small copy and its mirror; 1: b, c, a as JPEG, and what is no picture."""
    folder = tmp_path_factory.mktemp("near")
    first = [
        ("a", "a picture", png(one(0))),
        ("small", "a", png(one(0).resize((40, 40)))),
        ("mirror", "the same, mirrored", png(ImageOps.mirror(one(0)))),
    ]
    second = [
        ("b", "another", png(one(1))),
        ("broken", "nothing", b"no picture"),
        ("c", "a third", png(one(2))),
        ("jpeg", "a picture once more", png(one(0), "JPEG", quality=60)),
        ("b2", "another", png(one(1), compress_level=0)),
    ]
    make_shard(folder / "0.tar", first)
    make_shard(folder / "1.tar", second)
    return folder


def near(shards: Path, out: Path, *options: str) -> dict[str, list[int]]:
    tars = [str(shards / "1.tar"), str(shards / "0.tar")]
    words = ["near", *tars, "--detector", "hash", "--threshold", "0.9", "--out", str(out)]
    if "--workers" not in options:
        words += ["--workers", "1"]
    assert main([*words, *options]) == 0
    return {choice.shard: choice.rows().tolist() for choice in read_selection(str(out)).choices}


def test_near_keeps_one_of_each_group(shards, tmp_path, capsys):
    assert near(shards, tmp_path / "s") == {"0.tar": [0, 2], "1.tar": [0, 1, 2]}
    printed = capsys.readouterr().out
    assert "at 0.9: 3 pairs, 2 groups (the largest: 3, 2), 3 samples go" in printed
    assert "5 samples stay" in printed
    assert "1 images do not decode and are compared with nothing: they stay" in printed
    table = read_table(str(tmp_path / "s.pairs.parquet")).to_pylist()
    found = {(r["shard"], r["row"], r["other_shard"], r["other_row"]) for r in table}
    assert found == {("0.tar", 0, "0.tar", 1), ("0.tar", 0, "1.tar", 3), ("1.tar", 0, "1.tar", 4)}


def test_near_keeps_what_it_is_told_to(shards, tmp_path):
    longest = near(shards, tmp_path / "l", "--keep", "longest-caption")
    assert longest == {"0.tar": [2], "1.tar": [0, 1, 2, 3]}
    assert near(shards, tmp_path / "f", "--keep", "first") == near(shards, tmp_path / "g")


def test_near_takes_mirrored_pictures_for_the_same_where_told(shards, tmp_path):
    same = near(shards, tmp_path / "s", "--flips", "same")
    assert same == {"0.tar": [0], "1.tar": [0, 1, 2]}


def test_near_looks_at_a_selection_alone(shards, tmp_path):
    made = [
        choose(s.name, s.samples, s.mark, [1, 2] if s.name == "0.tar" else [0, 3, 4])
        for s in shards_of([str(shards / "*.tar")])
    ]
    write_selection(str(tmp_path / "of"), made)
    # "a" is not in it, so that its copies are left with each other.
    found = near(shards, tmp_path / "s", "--select", str(tmp_path / "of"))
    assert found == {"0.tar": [2], "1.tar": [0, 3]}


def test_near_is_the_same_on_two_workers_and_goes_on(shards, tmp_path, monkeypatch):
    for workers in ("1", "2"):
        (tmp_path / workers).mkdir()
        near(shards, tmp_path / workers / "s", "--workers", workers)
    files = [
        {
            path.relative_to(folder): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }
        for folder in (tmp_path / "1", tmp_path / "2")
    ]
    assert files[0].keys() == files[1].keys()
    assert len(files[0]) > 8
    odd = [str(name) for name in files[0] if files[0][name] != files[1][name]]
    assert not odd
    # Nothing is embedded again.
    monkeypatch.setattr(Embeddings, "table", None)
    near(shards, tmp_path / "1" / "s", "--threshold", "0.99")


def test_embeddings_are_the_detectors_rows_and_null_where_nothing_decodes(shards, tmp_path):
    spec = f"clip:{tiny_weights(tmp_path)}"
    detector = choose_detector(spec, "cpu")
    (_, shard) = shards_of([str(shards / "*.tar")])
    table = Embeddings(detector, mirrored=True).table(shard)
    assert table["vector"].is_null().to_pylist() == [False, True, False, False, False]
    assert table["pixels"].to_pylist() == [4096, None, 4096, 4096, 4096]
    assert table["letters"].to_pylist() == [7, 7, 7, 19, 7]
    pictures = [np.asarray(one(1)), np.asarray(one(2))]
    known = table.take([0, 2])
    wanted = open_detector(spec).embed(pictures)
    np.testing.assert_allclose(matrix(known["vector"]), wanted, atol=1e-3)
    flipped = open_detector(spec).embed([np.ascontiguousarray(p[:, ::-1]) for p in pictures])
    np.testing.assert_allclose(matrix(known["mirrored"]), flipped, atol=1e-3)
    part = Embeddings(detector, within=within(None))
    assert "mirrored" not in part.table(shard).column_names
    assert part.options() != Embeddings(choose_detector("hash")).options()


def test_page_shows_pairs_as_pictures_and_loads_nothing(shards, tmp_path):
    page = tmp_path / "page.html"
    near(shards, tmp_path / "s", "--threshold", "0.9,0.3", "--report", str(page))
    text = page.read_text()
    for words in ("Around 0.9", "Around 0.3", "0.tar small, 40 x 40", "Largest groups"):
        assert words in text
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", text)
    sources = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', text)
    assert len(sources) > 10


def test_near_of_nothing_that_decodes_keeps_all(tmp_path):
    make_shard(tmp_path / "0.tar", [("a", "nothing", b"no picture"), ("b", "nothing", b"")])
    make_shard(tmp_path / "1.tar", [("c", "nothing", b"no picture")])
    assert near(tmp_path, tmp_path / "s", "--report", str(tmp_path / "page.html")) == {
        "0.tar": [0, 1],
        "1.tar": [0],
    }
    assert "2 shards" in (tmp_path / "page.html").read_text()


def test_near_refuses_what_it_cannot_do(shards, tmp_path, capsys):
    words = ["near", str(shards / "0.tar"), "--out", str(tmp_path / "s"), "--workers", "1"]
    assert main([*words, "--detector", "phash", "--threshold", "0.9"]) == 1
    assert "no detector 'phash'" in capsys.readouterr().err
    for text in ("2", "-1", "x", "nan"):
        with pytest.raises(SystemExit):
            main([*words, "--detector", "hash", "--threshold", text])
