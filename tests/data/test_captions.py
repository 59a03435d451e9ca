"""Several captions for an image: one drawn per epoch, by seed, epoch and sample alone."""

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from clipfast.data import EvalLoader, TrainLoader, index
from clipfast.data.captions import draws, pick
from clipfast.data.fields import Fields
from clipfast.data.order import SampleRefs
from tests.data.tars import END, member
from tests.data.test_folders import picture

FIELDS = Fields(captions=("json:many,one",))
WORDS = ("zero", "one", "two", "three")


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> str:
    """12 samples of four captions each, one of them blank; the eighth sample is broken."""
    shard = tmp_path_factory.mktemp("captions") / "a.tar"
    parts = []
    for row in range(12):
        many = [f"{word} {row}" for word in WORDS[:3]]
        data = json.dumps({"many": ["", *many], "one": f"three {row}"}).encode()
        image = b"no image" if row == 7 else picture(row)
        parts.append(member(f"{row}.jpg", image) + member(f"{row}.json", data))
    shard.write_bytes(b"".join(parts) + END)
    return str(shard)


def train(path: str, **options) -> TrainLoader:
    options = {"on_error": "skip", "on_skip": lambda skipped: None, "threads": 1} | options
    return TrainLoader(path, 16, 6, seed=5, fields=FIELDS, **options)


def captions_of(loader: TrainLoader, count: int) -> list[list[list[int]]]:
    """The tokens of each batch, cut at its captions' ends."""
    return [
        [tokens[:length].tolist() for tokens, length in zip(b.tokens, b.lengths, strict=True)]
        for b in itertools.islice(loader, count)
    ]


def test_draws_are_uniform_and_of_seed_epoch_shard_and_row():
    shard, row = (each.ravel() for each in np.meshgrid(np.arange(4), np.arange(5000)))
    samples = SampleRefs(shard, row)
    first = draws(3, 0, samples)
    assert first.max() < 1 << 32
    for bins in (2, 3, 5, 7):
        chosen = np.array([draw * bins >> 32 for draw in first.tolist()])
        counts = np.bincount(chosen, minlength=bins)
        expected = len(first) / bins
        # Chi-square of bins - 1 degrees of freedom; 6 deviations above its mean.
        statistic = ((counts - expected) ** 2 / expected).sum()
        assert statistic < bins - 1 + 6 * np.sqrt(2 * (bins - 1))
    for other in (draws(4, 0, samples), draws(3, 1, samples)):
        assert (first == other).mean() < 0.001
        assert abs(np.corrcoef(first.astype(float), other.astype(float))[0, 1]) < 0.05
    some = np.array([7, 19_000, 3])
    assert (draws(3, 0, SampleRefs(shard[some], row[some])) == first[some]).all()
    assert len(np.unique(first)) > len(first) - 10


def test_pick_takes_what_says_something():
    assert pick(["", " ", "a", "b"], None) == "a"
    assert pick(["", "a", "\u200b", "b"], 0) == "a"
    assert pick(["", "a", "\u200b", "b"], (1 << 32) - 1) == "b"
    assert pick(["", " "], 0) == ""


@pytest.mark.parametrize("indexed", [False, True])
def test_each_caption_is_drawn_about_as_often_and_anew_in_each_epoch(path, tmp_path, indexed):
    if indexed:
        copy = tmp_path / "a.tar"
        copy.write_bytes(Path(path).read_bytes())
        path = str(copy)
        assert index.index_shards([path], workers=1, dali=False, fields=FIELDS).good == 11
    reader = train(path).reader
    good = [row for row in range(11 if indexed else 12) if indexed or row != 7]
    samples = SampleRefs(np.zeros(len(good), np.int64), np.array(good))
    seen: Counter[tuple[str, int]] = Counter()
    for epoch in range(200):
        for caption in reader.fetch(samples, epoch=epoch).captions:
            word, row = caption.split()
            seen[word, int(row)] += 1
    for row in {row for _, row in seen}:
        counts = [seen[word, row] for word in WORDS]
        assert sum(counts) == 200
        assert min(counts) > 25
    assert len({row for _, row in seen}) == 11
    assert reader.caption(0, 0) == "zero 0"
    reader.close()


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_drawn_captions_are_the_same_on_any_ranks_and_after_a_resume(path, ranks):
    whole = captions_of(train(path), 8)
    parts = [captions_of(train(path, rank=r, world_size=ranks), 8) for r in range(ranks)]
    for number, batch in enumerate(whole):
        assert [text for part in parts for text in part[number]] == batch
    first = train(path)
    captions_of(first, 3)
    fresh = train(path)
    fresh.load_state_dict(first.state_dict())
    assert captions_of(fresh, 5) == whole[3:]
    assert captions_of(train(path, captions="first"), 8) != whole


def test_evaluations_and_first_take_the_first_that_says_something(path):
    first = train(path, captions="first")
    reader = first.reader
    samples = SampleRefs(np.zeros(3, np.int64), np.array([0, 5, 11]))
    expected = ["zero 0", "zero 5", "zero 11"]
    for epoch in range(3):
        assert reader.fetch(samples, epoch=epoch).captions == expected
    assert EvalLoader(path, 16, 4, fields=FIELDS).reader.fetch(samples).captions == expected
    with pytest.raises(ValueError, match="captions must be 'drawn' or 'first'; got 'last'"):
        train(path, captions="last")
