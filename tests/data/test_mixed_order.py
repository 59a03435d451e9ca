"""Orders of mixtures: exact shares, random access and its inverse; one source's order unchanged."""

import hashlib
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipfast.data.good_order import GoodOrder
from clipfast.data.order import EpochOrder, MixedOrder, SampleRefs, Share
from clipfast.data.order.shares import by_repeats, by_weights, taken

SOURCES = (
    Share("a", np.array([30, 20]), 50),
    Share("b", np.array([7, 0, 6]), 39),
    Share("c", np.array([100]), 40),
    Share("d", np.array([1]), 3),
)


def mixed(window: int = 32, seed: int = 3, shuffle: bool = True) -> MixedOrder:
    return MixedOrder(SOURCES, seed, window, shuffle)


def source_of() -> np.ndarray:
    return np.repeat(np.arange(len(SOURCES)), [len(share.counts) for share in SOURCES])


def refs(order, epoch: int, positions) -> list[tuple[int, int]]:
    found = order.at(epoch, np.asarray(positions, np.int64))
    return list(zip(found.shard.tolist(), found.row.tolist(), strict=True))


def test_the_order_of_one_source_is_what_it_was_before_mixtures():
    digest = hashlib.sha256()
    for window in (1, 10, 64, 1000):
        order = EpochOrder(np.array([7, 0, 123, 31, 1, 58]), seed=3, window=window)
        for epoch in (0, 1, 7):
            found = order.locate(epoch, 0, len(order))
            digest.update(found.shard.tobytes() + found.row.tobytes())
            digest.update(order.crops(epoch, 0, len(order)).tobytes())
    assert digest.hexdigest()[:16] == "da244b130834df52"


@given(st.lists(st.integers(1, 60), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_taken_is_the_first_of_what_is_due(samples):
    due = sorted((Fraction(2 * j + 1, 2 * m), i) for i, m in enumerate(samples) for j in range(m))
    for stop in range(sum(samples) + 1):
        counts = Counter(i for _, i in due[:stop])
        assert taken(stop, samples) == [counts[i] for i in range(len(samples))]


def test_taken_of_large_sources_is_near_its_share_and_adds_up():
    samples = [3_000_000_007, 1, 12_345_678, 40_000_000_000]
    total = sum(samples)
    before = [0] * len(samples)
    for stop in (0, 1, 262_144, total // 3, total // 2 + 1, total - 1, total):
        found = taken(stop, samples)
        assert sum(found) == stop
        assert all(now >= then for now, then in zip(found, before, strict=True))
        assert all(abs(f - stop * m / total) < 2 for f, m in zip(found, samples, strict=True))
        before = found
    assert found == samples


@pytest.mark.parametrize("window", [1, 10, 32, 1000])
@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_takes_its_shares_and_ten_take_each_sample_as_often_as_others(window, shuffle):
    order = mixed(window, shuffle=shuffle)
    seen: Counter[tuple[int, int]] = Counter()
    for epoch in range(10):
        found = refs(order, epoch, range(len(order)))
        sources = Counter(source_of()[shard] for shard, _ in found)
        assert [sources[i] for i in range(len(SOURCES))] == [share.samples for share in SOURCES]
        seen.update(found)
    for i, share in enumerate(SOURCES):
        size = int(share.counts.sum())
        often = [n for (shard, _), n in seen.items() if source_of()[shard] == i]
        assert len(often) == size
        exact = Fraction(10 * share.samples, size)
        assert min(often) == exact // 1
        assert max(often) == -(-exact // 1)


@pytest.mark.parametrize("window", [1, 10, 32, 1000])
def test_any_positions_are_those_of_the_whole_epoch_and_places_is_the_inverse(window):
    order = mixed(window)
    for epoch in (0, 1, 6):
        whole = refs(order, epoch, range(len(order)))
        fresh = mixed(window)
        some = np.random.default_rng(epoch).permutation(len(order))[:50]
        assert refs(fresh, epoch, some) == [whole[p] for p in some]
        standing: dict[tuple[int, int], list[int]] = {}
        for position, sample in enumerate(whole):
            standing.setdefault(sample, []).append(position)
        for shard, count in enumerate(order.counts.tolist()):
            for row in range(count):
                sample = SampleRefs(np.array([shard]), np.array([row]))
                assert order.places(epoch, sample).tolist() == standing.get((shard, row), [])
        pair = SampleRefs(np.array([0, 2, 5]), np.array([3, 4, 9]))
        several = [p for s in ((0, 3), (2, 4), (5, 9)) for p in standing.get(s, [])]
        assert order.places(epoch, pair).tolist() == sorted(several)


@pytest.mark.parametrize("make", [mixed, lambda w: EpochOrder(mixed().counts, 3, w)])
@pytest.mark.parametrize("window", [1, 10, 32, 1000])
def test_tally_counts_what_stands_in_front(make, window):
    order = make(window)
    for epoch in (0, 4):
        found = source_of()[order.at(epoch, np.arange(len(order))).shard]
        for stop in (0, 1, 31, 32, 33, 100, len(order)):
            counts = np.bincount(found[:stop], minlength=len(SOURCES))
            assert (order.tally(epoch, stop, source_of(), len(SOURCES)) == counts).all()
    with pytest.raises(ValueError, match="has no positions"):
        order.tally(0, len(order) + 1, source_of(), len(SOURCES))


def test_a_mixture_differs_between_epochs_and_seeds_and_spreads_its_sources():
    order = mixed()
    first = refs(order, 0, range(len(order)))
    assert refs(order, 1, range(len(order))) != first
    assert refs(mixed(seed=4), 0, range(len(order))) != first
    assert refs(mixed(), 0, range(len(order))) == first
    assert not np.array_equal(order.crops(0, 0, 9), order.crops(1, 0, 9))
    assert np.array_equal(order.crops(0, 2, 9), order.crops(0, 0, 9)[2:])
    for start in range(0, 128, 32):
        sources = Counter(source_of()[shard] for shard, _ in first[start : start + 32])
        for i, share in enumerate(SOURCES):
            assert abs(sources[i] - 32 * share.samples / len(order)) < 2


@pytest.mark.parametrize("batch", [1, 7, 16])
def test_a_good_order_of_a_mixture_leaves_broken_samples_out_whenever_they_are_known(batch):
    broken = [(0, 3), (2, 4), (4, 0), (5, 9), (6, 0)]
    early, late = GoodOrder(mixed(), batch), GoodOrder(mixed(), batch)
    for shard, row in broken:
        early.leave_out(shard, row)
    for epoch in (0, 1, 5):
        late.samples(epoch, 0, 0, batch)
    for shard, row in broken:
        late.leave_out(shard, row)
    for epoch in (0, 1, 5):
        for index in range(len(mixed()) // batch):
            found, other = (order.samples(epoch, index, 0, batch) for order in (early, late))
            assert (found.shard == other.shard).all()
            assert (found.row == other.row).all()
            assert not {*zip(found.shard.tolist(), found.row.tolist(), strict=True)} & {*broken}


def test_weights_and_repeats_become_samples_of_an_epoch():
    sizes = {"a": 10, "b": 20, "c": 5}
    assert by_weights(sizes, {"a": 2, "b": 1, "c": 1}, 35) == [17, 9, 9]
    assert sum(by_weights(sizes, {"a": 0.1, "b": 0.2, "c": 0.7}, 10**9 + 1)) == 10**9 + 1
    assert by_repeats(sizes, {"c": 3, "a": 0.5}) == [5, 20, 15]
    with pytest.raises(ValueError, match="weights: no weights of 'c'; 'd' is no source"):
        by_weights(sizes, {"a": 1, "b": 1, "d": 1}, 10)
    with pytest.raises(ValueError, match="repeats: 'd' is no source"):
        by_repeats(sizes, {"d": 1})
    with pytest.raises(ValueError, match="source 'c' with weight 1 gets none"):
        by_weights(sizes, {"a": 1000, "b": 1000, "c": 1}, 10)
    with pytest.raises(ValueError, match=r"source 'c' of 5 samples, 0\.01 times, gives none"):
        by_repeats(sizes, {"c": 0.01})
    with pytest.raises(ValueError, match="source 'e' holds no sample"):
        MixedOrder([Share("e", np.array([0, 0]), 4)])
