"""Orders without their broken samples: the same however and whenever those are found."""

import numpy as np
import pytest

from clipfast.data.good_order import GoodOrder
from clipfast.data.order import EpochOrder, SampleRefs

COUNTS = np.array([7, 0, 23, 31, 1, 18])
EPOCHS = 3


def pairs(refs: SampleRefs) -> list[tuple[int, int]]:
    return list(zip(refs.shard.tolist(), refs.row.tolist(), strict=True))


def all_samples() -> list[tuple[int, int]]:
    return [(shard, row) for shard, count in enumerate(COUNTS.tolist()) for row in range(count)]


def some_broken(number: int, seed: int = 0) -> set[tuple[int, int]]:
    samples = all_samples()
    chosen = np.random.default_rng(seed).permutation(len(samples))[:number]
    return {samples[i] for i in chosen}


def discover(
    order: EpochOrder, batch_size: int, broken: set, ranks: int = 1, known: set | None = None
) -> list[list[tuple[int, int]]]:
    """Global batches of some epochs, each rank finding out what is broken as it comes to it."""
    share = batch_size // ranks
    batches = [[] for _ in range(EPOCHS * (len(order) // batch_size))]
    for rank in range(ranks):
        good = GoodOrder(order, batch_size)
        for sample in sorted(known or ()):
            good.leave_out(*sample)
        for number, batch in enumerate(batches):
            epoch, index = divmod(number, len(order) // batch_size)
            while True:
                mine = pairs(good.samples(epoch, index, rank * share, (rank + 1) * share))
                bad = [sample for sample in mine if sample in broken]
                if not bad:
                    break
                for sample in bad:
                    good.leave_out(*sample)
            batch += mine
    return batches


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("broken", [0, 1, 9, 40])
@pytest.mark.parametrize("batch_size", [4, 12, 30])
def test_good_order_is_the_same_on_any_ranks_and_with_any_knowledge(broken, batch_size, shuffle):
    order = EpochOrder(COUNTS, seed=1, window=16, shuffle=shuffle)
    bad = some_broken(broken)
    alone = discover(order, batch_size, bad)
    assert discover(order, batch_size, bad, ranks=2) == alone
    assert discover(order, batch_size, bad, known=bad) == alone
    assert discover(order, batch_size, bad, known=some_broken(broken // 2) & bad) == alone
    assert not bad & {sample for batch in alone for sample in batch}


def test_good_order_without_a_broken_sample_is_the_order_itself():
    order = EpochOrder(COUNTS, seed=1, window=16)
    batches = discover(order, 8, set())
    assert [sample for batch in batches[:10] for sample in batch] == pairs(order.locate(0, 0, 80))


@pytest.mark.parametrize("broken", [1, 9, 20])
def test_good_order_has_no_sample_twice_in_a_batch_and_few_twice_in_an_epoch(broken):
    order = EpochOrder(COUNTS, seed=5, window=16)
    batch_size, steps = 8, len(order) // 8
    bad = some_broken(broken, seed=3)
    batches = discover(order, batch_size, bad)
    for batch in batches:
        assert len(set(batch)) == batch_size
    for epoch in range(EPOCHS):
        seen = [s for batch in batches[epoch * steps : (epoch + 1) * steps] for s in batch]
        # What fills the end is seen twice: as many as there were broken ones, at most.
        assert len(seen) - len(set(seen)) <= broken


def test_good_order_shifts_the_sequence_of_a_place_and_no_other():
    order = EpochOrder(np.array([12]), shuffle=False)
    batches = discover(order, 4, {(0, 5)})
    rows = [[row for _, row in batch] for batch in batches[:3]]
    assert rows == [[0, 1, 2, 3], [4, 9, 6, 7], [8, 1, 10, 11]]


def test_good_order_of_a_place_that_is_broken_throughout_takes_the_next_of_others():
    order = EpochOrder(np.array([8]), shuffle=False)
    rows = [[r for _, r in batch] for batch in discover(order, 4, {(0, 1), (0, 5)})[:2]]
    assert rows == [[0, 6, 2, 3], [4, 2, 6, 7]]


def test_good_order_says_when_no_sample_is_left():
    order = EpochOrder(np.array([4]), shuffle=False)
    with pytest.raises(ValueError, match=r"no sample is left.* 1 of 4 are broken.* batch has 4"):
        discover(order, 4, {(0, 1)})


@pytest.mark.parametrize("shuffle", [True, False])
def test_epoch_order_finds_the_position_of_each_sample(shuffle):
    order = EpochOrder(COUNTS, seed=2, window=10, shuffle=shuffle)
    for epoch in (0, 3, 1):
        samples = order.locate(epoch, 0, len(order))
        assert order.positions(epoch, samples).tolist() == list(range(len(order)))
        some = order.at(epoch, np.array([5, 70, 5]))
        assert pairs(some) == [pairs(samples)[i] for i in (5, 70, 5)]
