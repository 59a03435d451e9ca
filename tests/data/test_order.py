"""The order of samples: complete, shuffled anew, the same for any number of ranks."""

import numpy as np
import pytest

from clipfast.data.order import EpochOrder

COUNTS = np.array([7, 0, 123, 31, 1, 58])


def pairs(order: EpochOrder, epoch: int, start: int = 0, stop: int | None = None):
    refs = order.locate(epoch, start, len(order) if stop is None else stop)
    return list(zip(refs.shard.tolist(), refs.row.tolist(), strict=True))


def every_sample():
    return {(shard, row) for shard, count in enumerate(COUNTS) for row in range(count)}


@pytest.mark.parametrize("window", [1, 10, 64, 1000])
def test_epoch_order_visits_each_sample_once(window):
    order = EpochOrder(COUNTS, seed=3, window=window)
    for epoch in range(3):
        visited = pairs(order, epoch)
        assert len(visited) == len(order) == COUNTS.sum()
        assert set(visited) == every_sample()


def test_epoch_order_differs_between_epochs_and_seeds_and_repeats():
    order = EpochOrder(COUNTS, seed=3, window=64)
    first = pairs(order, 0)
    assert pairs(order, 1) != first
    assert pairs(EpochOrder(COUNTS, seed=4, window=64), 0) != first
    assert pairs(order, 0) == first


def test_epoch_order_shuffles_shards_and_samples_within_the_window():
    order = EpochOrder(np.full(50, 10), seed=0, window=20)
    visited = pairs(order, 0)
    shards = [shard for shard, _ in visited]
    assert shards != sorted(shards)
    for start in range(0, 500, 20):
        block = visited[start : start + 20]
        assert len({shard for shard, _ in block}) == 2
        assert block != sorted(block)


def test_epoch_order_is_cut_into_slices_without_a_change():
    order = EpochOrder(COUNTS, seed=1, window=50)
    whole = pairs(order, 2)
    cut = [p for start in range(0, 220, 11) for p in pairs(order, 2, start, start + 11)]
    assert cut == whole
    assert np.array_equal(order.crops(2, 5, 50), order.crops(2, 0, 60)[5:50])


def test_epoch_order_without_shuffle_reads_shards_as_they_lie():
    assert pairs(EpochOrder(COUNTS, shuffle=False), 0) == sorted(every_sample())


def test_epoch_order_crops_are_uniform_and_fresh_each_epoch():
    order = EpochOrder(np.array([5000]), seed=0)
    crops = order.crops(0, 0, 5000)
    assert crops.dtype == np.float32
    assert 0 <= crops.min() < crops.max() < 1
    assert np.abs(crops.mean(0) - 0.5).max() < 0.02
    assert np.abs(np.corrcoef(crops.T) - np.eye(3)).max() < 0.05
    assert not np.array_equal(crops, order.crops(1, 0, 5000))
