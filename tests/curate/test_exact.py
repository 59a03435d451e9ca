"""exact: repeats planted in several ways, in one shard and over shards, for any ranges."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipfast.curate import main
from clipfast.curate.exact import repeats
from clipfast.data.selection import read_selection
from tests.curate.shards import make_shard, png

pytestmark = pytest.mark.needs("pyarrow", "ftfy")

RED, BLUE, GREEN = (200, 0, 0), (0, 0, 200), (0, 150, 0)


def encoded(colour: tuple[int, int, int], size: int = 4, **options) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(file, "PNG", **options)
    return file.getvalue()


@pytest.fixture
def shards(tmp_path):
    """Of two shards, which samples repeat an earlier one by what."""
    again = encoded(RED, compress_level=0)
    assert again != png(RED)
    first = [
        ("a", "a red square", png(RED)),
        ("b", "A  red\tsquare", png(RED)),  # all three
        ("c", "something red", png(RED)),  # bytes and pixels
        ("d", "a red square", again),  # pixels and pair: other bytes
        ("e", "a red square", encoded(RED, size=5)),  # none: another size
        ("broken", "a red square", b"no picture"),  # none by pixels
    ]
    second = [
        ("f", "a blue square", png(BLUE)),
        ("a", "a red square", png(RED)),  # all three, of the other shard
        ("g", "something blue", encoded(BLUE, compress_level=0)),  # pixels alone
        ("broken", "a red square", b"no picture"),  # bytes
        ("h", "a green square", png(GREEN)),
    ]
    make_shard(tmp_path / "1.tar", second)
    make_shard(tmp_path / "0.tar", first)
    return tmp_path


def kept(shards: Path, by: str, out: str, *names: str) -> dict[str, list[int]]:
    path = str(shards / out)
    tars = [str(shards / name) for name in names or ("0.tar", "1.tar")]
    assert main(["exact", *tars, "--by", by, "--out", path, "--workers", "1"]) == 0
    return {choice.shard: choice.rows().tolist() for choice in read_selection(path).choices}


def test_exact_keeps_the_first_of_each_group(shards, capsys):
    assert kept(shards, "bytes", "b") == {"0.tar": [0, 3, 4, 5], "1.tar": [0, 2, 4]}
    assert kept(shards, "pixels", "p") == {"0.tar": [0, 4, 5], "1.tar": [0, 3, 4]}
    capsys.readouterr()
    assert kept(shards, "pair", "c") == {"0.tar": [0, 2, 4, 5], "1.tar": [0, 2, 3, 4]}
    printed = capsys.readouterr().out
    assert "11 samples of 2 shards: 3 repeat one of 1 others by pair" in printed
    assert "2 images do not decode and are compared with nothing: they stay" in printed


def test_exact_is_the_same_for_any_order_of_shards_and_any_number_of_ranges(shards, monkeypatch):
    for by in ("bytes", "pixels", "pair"):
        at_once = kept(shards, by, f"{by}-1")
        assert kept(shards, by, f"{by}-2", "1.tar", "0.tar") == at_once
        # What the work leaves is used again when a shard is added.
        kept(shards, by, f"{by}-3", "1.tar")
        monkeypatch.setattr(repeats, "_PER_RANGE", 2)
        assert kept(shards, by, f"{by}-3") == at_once
        monkeypatch.undo()
        assert (shards / f"{by}-1").read_bytes() == (shards / f"{by}-3").read_bytes()


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_ranges_hold_each_digest_once(count):
    rng = np.random.default_rng(0)
    edges = [0, (1 << 64) - 1, *((1 << 64) * i // count for i in range(1, count))]
    high = np.concatenate([rng.integers(0, 1 << 64, 1000, np.uint64), np.array(edges, np.uint64)])
    held = np.stack([repeats.Range(number, count).holds(high) for number in range(count)])
    assert (held.sum(0) == 1).all()
