"""Training on several sources: exact shares, any ranks, resume at any batch, counts per source."""

import itertools
from collections import Counter
from pathlib import Path

import pytest

from clipfast.data import TrainLoader
from clipfast.data.sources import Mixing
from tests.data.tars import END, member
from tests.data.test_selecting import assert_same, assert_share, selection_of, shard

BATCH = 6


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, list[str]]:
    """Three sources: 12 + 5, 7, and 12 samples of which one is broken."""
    folder = tmp_path_factory.mktemp("sources")
    broken = folder / "broken.tar"
    good = Path(shard(folder, "z.tar", list(range(11)))).read_bytes().removesuffix(END)
    broken.write_bytes(good + member("x.jpg", b"no image") + member("x.txt", b"words") + END)
    return {
        "a": [shard(folder, "a.tar", list(range(12))), shard(folder, "b.tar", list(range(5)))],
        "c": [shard(folder, "c.tar", list(range(7)))],
        "d": [str(broken)],
    }


MIXING = Mixing(weights={"a": 1, "c": 2, "d": 3}, epoch_samples=36)


def train(sources, mixing=MIXING, **options) -> TrainLoader:
    options = {"on_error": "skip", "on_skip": lambda skipped: None, "threads": 1} | options
    return TrainLoader(sources, 16, BATCH, seed=3, window=10, mixing=mixing, **options)


def source_of(loader: TrainLoader, batch) -> list[str]:
    return [loader.sources.names[i] for i in loader.sources.source[batch.shard].tolist()]


def test_a_mixture_takes_its_shares_and_counts_them(sources):
    loader = train(sources)
    assert loader.contents == "36 pairs in 4 shard(s): a 6 of 17, c 12 of 7, d 18 of 12"
    seen: Counter[str] = Counter()
    for number, batch in enumerate(itertools.islice(loader, 12), 1):
        seen.update(source_of(loader, batch))
        if not loader.skipped:
            assert loader.source_samples() == {name: seen[name] for name in "acd"}
        if number % 6 == 0:
            epochs = number // 6
            assert loader.source_samples() == {"a": 6 * epochs, "c": 12 * epochs, "d": 18 * epochs}
    assert loader.skipped
    fresh = train(sources)
    fresh.load_state_dict(loader.state_dict())
    assert fresh.source_samples() == loader.source_samples()


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_mixture_goes_on_at_any_batch_on_other_ranks(sources, ranks):
    whole = list(itertools.islice(train(sources), 9))
    first = train(sources)
    for taken, _ in enumerate(itertools.islice(first, 8), 1):
        state = first.state_dict()
        for rank in range(ranks):
            part = train(sources, rank=rank, world_size=ranks)
            part.load_state_dict(state)
            assert_share(next(iter(part)), whole[taken], rank, ranks)


def test_names_alone_change_no_batch_and_a_state_of_before_goes_on(sources):
    flat = [path for paths in sources.values() for path in paths]
    named, plain = train(sources, None), train(flat, None)
    assert_same(itertools.islice(named, 9), itertools.islice(plain, 9))
    assert plain.source_samples() == {}
    assert sum(named.source_samples().values()) == 9 * BATCH
    state = plain.state_dict()
    assert not {"mixture", "selection"} & set(state)
    named.load_state_dict(state)


def test_a_state_goes_on_with_its_own_mixture_alone(sources):
    state = train(sources).state_dict()
    for mixing in (Mixing(weights={"a": 2, "c": 1, "d": 3}, epoch_samples=36), None):
        with pytest.raises(ValueError, match="mixture was a 6 of 17, c 12 of 7, d 18 of 12, is"):
            train(sources, mixing).load_state_dict(state)
    other = {"A": sources["a"], "c": sources["c"], "d": sources["d"]}
    weights = {"A": 1, "c": 2, "d": 3}
    with pytest.raises(ValueError, match="is A 6 of 17"):
        train(other, Mixing(weights, epoch_samples=36)).load_state_dict(state)


def test_repeats_and_epoch_samples_alone(sources):
    repeated = train(sources, Mixing(repeats={"c": 3, "d": 0.5}))
    assert repeated.contents.endswith("a 17 of 17, c 21 of 7, d 6 of 12")
    short = train(sources, Mixing(epoch_samples=18))
    assert short.contents.endswith("a 9 of 17, c 3 of 7, d 6 of 12")
    unnamed = train(sources["a"], Mixing(epoch_samples=51))
    assert unnamed.contents.endswith("51 pairs in 2 shard(s): all 51 of 17")
    rows = Counter(
        place
        for batch in itertools.islice(unnamed, 8)
        for place in zip(batch.shard.tolist(), batch.row.tolist(), strict=True)
    )
    assert max(rows.values()) == 3


def test_a_mixture_of_selected_samples_takes_those_alone(sources):
    keep = {"a.tar": [1, 2, 3], "b.tar": [4], "c.tar": [0, 6]}
    selection = selection_of([*sources["a"], *sources["c"]], keep)
    two = {"a": sources["a"], "c": sources["c"]}
    loader = train(two, Mixing(weights={"a": 1, "c": 1}, epoch_samples=12), select=selection)
    assert "a 6 of 4, c 6 of 2, as s.parquet selects of 24" in loader.contents
    captions = {
        loader.reader.caption(*place)
        for batch in itertools.islice(loader, 4)
        for place in zip(batch.shard.tolist(), batch.row.tolist(), strict=True)
    }
    assert captions == {f"{name} {row}" for name, rows in keep.items() for row in rows}


def test_mixtures_that_say_two_things_are_refused(sources):
    with pytest.raises(ValueError, match="weights and repeats are two answers"):
        Mixing(weights={"a": 1}, repeats={"a": 1})
    with pytest.raises(ValueError, match="epoch_samples and repeats are two answers"):
        Mixing(repeats={"a": 1}, epoch_samples=5)
    with pytest.raises(ValueError, match="weights of 'a' must be above 0; got 0"):
        Mixing(weights={"a": 0})
    with pytest.raises(ValueError, match=r"a\.tar' is of source 'a' and of source 'e'"):
        train(sources | {"e": sources["a"][:1]}, None)
    with pytest.raises(ValueError, match="no weights of 'd'"):
        train(sources, Mixing(weights={"a": 1, "c": 1}))
