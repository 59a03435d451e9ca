"""Pairs: exact ones against a few plain lines, those of an index against exact ones."""

import numpy as np
import pytest

from clipfast.curate.near import exact, ivfpq, pairs, vectors
from clipfast.curate.near.find import Work, find_pairs
from tests.curate.near.vectors import part, stored, unit

pytestmark = pytest.mark.needs("pyarrow")


def cloud(count: int, width: int, seed: int = 0, near: int = 0, noise: float = 0.02) -> np.ndarray:
    """Random vectors; the last `near` are the first ones with noise."""
    rng = np.random.default_rng(seed)
    rows = unit(rng.standard_normal((count, width)))
    if near:
        rows[-near:] = unit(rows[:near] + noise * rng.standard_normal((near, width)))
    return rows


def plain(rows: np.ndarray, threshold: float, flipped: np.ndarray | None = None) -> dict:
    """By pair, its similarity."""
    wide = rows.astype(np.float64)
    alike = wide @ wide.T
    if flipped is not None:
        other = wide @ flipped.astype(np.float64).T
        alike = np.maximum(alike, np.maximum(other, other.T))
    first, second = np.nonzero(np.triu(alike.astype(np.float32) >= np.float32(threshold), 1))
    return {(int(a), int(b)): min(1.0, alike[a, b]) for a, b in zip(first, second, strict=True)}


def as_dict(found, threshold: float) -> dict:
    found = found.at_least(threshold)
    columns = (found.first.tolist(), found.second.tolist(), found.similarity.tolist())
    return {(a, b): s for a, b, s in zip(*columns, strict=True)}


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(("queries", "base", "rows"), [(1024, 16384, 16384), (7, 11, 23)])
def test_exact_pairs_are_all_pairs(tmp_path, monkeypatch, mirrored, queries, base, rows):
    monkeypatch.setattr(exact, "_QUERIES", queries)
    monkeypatch.setattr(exact, "_BASE", base)
    monkeypatch.setattr(pairs, "_ROWS", rows)
    given = cloud(123, 5, near=20)
    flipped = cloud(123, 5, seed=1) if mirrored else None
    held = stored(tmp_path, given, flipped)
    found = find_pairs(Work(str(tmp_path), workers=1), held, 0.8, "exact")
    wanted = plain(given, 0.8, flipped)
    assert len(wanted) > 20
    got = as_dict(found, 0.8)
    assert got.keys() == wanted.keys()
    assert got == pytest.approx(wanted, abs=1e-7)
    # Some just below, for the page.
    below = found.similarity < np.float32(0.8)
    assert below.any()
    assert (found.similarity[below] >= 0.7).all()
    if rows > 123:
        nearest = sorted((s for s in plain(given, 0.7, flipped).values() if s < 0.8), reverse=True)
        some = min(64, len(nearest))
        assert sorted(found.similarity[below], reverse=True) == pytest.approx(nearest[:some])


@pytest.mark.parametrize("mirrored", [False, True])
def test_exact_pairs_of_several_looks_take_the_look_that_is_most_alike(tmp_path, mirrored):
    looks = [cloud(97, 5, seed=seed, near=near) for seed, near in ((0, 20), (1, 0), (2, 9))]
    flipped = [cloud(97, 5, seed=seed) for seed in (3, 4, 5)] if mirrored else []
    both = np.concatenate(looks, 1), np.concatenate(flipped, 1) if mirrored else None
    held = stored(tmp_path, *both, looks=3)
    found = as_dict(find_pairs(Work(str(tmp_path), workers=1), held, 0.9, "exact"), 0.9)
    wanted: dict = {}
    for place, rows in enumerate(looks):
        for pair, alike in plain(rows, 0.9, flipped[place] if mirrored else None).items():
            wanted[pair] = max(alike, wanted.get(pair, -1))
    assert len(wanted) > len(plain(looks[0], 0.9))
    assert found == pytest.approx(wanted, abs=1e-7)


def test_equal_vectors_are_pairs_of_the_first(tmp_path):
    rows = cloud(6, 4)
    rows[3] = rows[5] = rows[1]
    held = stored(tmp_path, rows)
    assert held.distinct == 4
    assert held.number.tolist() == [0, 1, 2, 1, 3, 1]
    found = as_dict(find_pairs(Work(str(tmp_path), workers=1), held, 0.9999), 0.9999)
    assert found == {(1, 3): 1.0, (1, 5): 1.0}


def test_vectors_that_share_a_key_are_told_apart(tmp_path, monkeypatch):
    rows = cloud(7, 4)
    rows[4] = rows[0]
    monkeypatch.setattr(vectors, "_keys", lambda both: np.zeros(len(both), np.uint64))
    paths = [
        part(tmp_path / "a.parquet", [None, *rows[:3]]),
        part(tmp_path / "b.parquet", [*rows[3:], None]),
    ]
    held = vectors.gather(str(tmp_path), paths)
    assert held.distinct == 6
    assert (held.vectors[held.number] == rows).all()
    assert held.column("shard").tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert held.column("row").tolist() == [1, 2, 3, 0, 1, 2, 3]
    assert held.column("pixels").tolist() == [101, 102, 103, 100, 101, 102, 103]
    again = vectors.gather(str(tmp_path), paths)
    assert again == held


def test_too_many_pairs_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pairs, "_MOST", 10)
    held = stored(tmp_path, cloud(40, 3))
    with pytest.raises(
        ValueError, match=r"more than 10 pairs .* of -0.5 or more: raise --threshol"
    ):
        find_pairs(Work(str(tmp_path), workers=1), held, -0.5)


def test_scratch_must_be_a_disk():
    with pytest.raises(ValueError, match="give --scratch"):
        _ = Work("s3://bucket/parts").local
    assert Work("s3://bucket/parts", scratch="/tmp/x").local == "/tmp/x"


@pytest.mark.needs("faiss")
def test_ivfpq_finds_what_exact_finds(tmp_path, monkeypatch):
    monkeypatch.setattr(ivfpq, "_FEWEST", 2000)
    # Clusters, as pictures have them: the index must tell near ones from very near ones.
    rng = np.random.default_rng(3)
    middles = rng.standard_normal((200, 16))
    rows = unit(middles[rng.integers(200, size=5000)] + 0.8 * rng.standard_normal((5000, 16)))
    rows[-900:] = unit(rows[:900] + 0.05 * rng.standard_normal((900, 16)))
    flipped = unit(rows[::-1] + 0.05 * rng.standard_normal(rows.shape))
    held = stored(tmp_path, rows, flipped)
    work = Work(str(tmp_path), workers=1)
    wanted = as_dict(find_pairs(work, held, 0.95, "exact"), 0.95)
    got = as_dict(find_pairs(work, held, 0.95, "ivfpq"), 0.95)
    assert got.items() <= wanted.items()
    recall = len(got) / len(wanted)
    print(f"recall of IVF-PQ: {recall:.4f} of {len(wanted)} pairs")
    assert recall > 0.98
    # The other look of each picture is like nothing: what finds pairs is the first.
    other = unit(rng.standard_normal(rows.shape))
    twice = np.concatenate([rows, other], 1), np.concatenate([flipped, other], 1)
    held_twice = stored(tmp_path / "twice", *twice, looks=2)
    seen = as_dict(
        find_pairs(Work(str(tmp_path / "twice"), workers=1), held_twice, 0.95, "ivfpq"), 0.95
    )
    assert len(seen) > 0.98 * len(wanted)
    assert seen.keys() <= wanted.keys()
    # With few lists visited some are missed: the test can fail.
    few = as_dict(find_pairs(work, held, 0.95, "ivfpq", probes=1), 0.95)
    assert len(few) < len(got)


@pytest.mark.needs("faiss")
def test_ivfpq_refuses_few_vectors(tmp_path):
    held = stored(tmp_path, cloud(40, 3))
    with pytest.raises(ValueError, match=r"at least 10,240 different vectors, and there are 40"):
        find_pairs(Work(str(tmp_path), workers=1), held, 0.5, "ivfpq")
    assert ivfpq._codes(32) == 8
    assert [ivfpq._codes(width) for width in (64, 7, 512)] == [16, 1, 128]
