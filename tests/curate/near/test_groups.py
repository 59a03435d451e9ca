"""Groups: what connects, what stays, and chains."""

import numpy as np
import pytest

from clipfast.curate.near.findings import bands, just_above, just_below, members
from clipfast.curate.near.groups import Pairs, connect, thin

pytestmark = pytest.mark.needs("scipy")


def pairs_of(*edges: tuple[int, int, float]) -> Pairs:
    first, second, alike = zip(*edges, strict=True) if edges else ((), (), ())
    return Pairs(np.array(first, np.int64), np.array(second, np.int64), np.array(alike, np.float32))


def gone(pairs: Pairs, worth: list[int], most: int = 1000, number=None) -> list[int]:
    number = np.arange(len(worth)) if number is None else np.array(number)
    groups = connect(pairs, len(worth))
    goes, _ = thin(groups, number, np.array(worth), most)
    return np.flatnonzero(goes).tolist()


def test_the_most_worth_of_a_group_stays_and_of_equal_ones_the_first():
    pairs = pairs_of((0, 2, 0.9), (2, 5, 0.9), (1, 3, 0.99))
    assert gone(pairs, [0] * 6) == [2, 3, 5]
    assert gone(pairs, [1, 7, 3, 8, 0, 2]) == [0, 1, 5]
    assert gone(pairs_of(), [1, 1]) == []
    assert gone(pairs_of(), []) == []


def test_thresholds_split_groups():
    pairs = pairs_of((0, 1, 0.9), (1, 2, 0.95), (3, 4, 0.99))
    sizes = [connect(pairs.at_least(t), 6) for t in (0.9, 0.95, 0.96, 1.0)]
    assert [groups.largest for groups in sizes] == [[3, 2], [2, 2], [2], []]
    assert [groups.count for groups in sizes] == [2, 2, 1, 0]
    shown = members(sizes[0], 4, 2)
    assert [(size, few.tolist()) for size, few in shown] == [(3, [0, 1]), (2, [3, 4])]


def test_of_a_chain_only_what_is_like_one_that_stays_goes():
    chain = pairs_of(*[(i, i + 1, 0.9) for i in range(5)])
    assert gone(chain, [0] * 6) == [1, 2, 3, 4, 5]
    assert gone(chain, [0] * 6, most=5) == [1, 3, 5]
    # The best one first.
    assert gone(chain, [0, 0, 9, 0, 0, 0], most=5) == [1, 3, 5]
    assert gone(chain, [0, 9, 0, 0, 0, 0], most=5) == [0, 2, 4]
    _, chains = thin(connect(chain, 6), np.arange(6), np.zeros(6), 5)
    assert chains == 1


def test_equal_vectors_of_a_chain_go_together():
    # 0, 1 and 2 have one vector; 3 is like it. Pairs name the first of them.
    pairs = pairs_of((0, 1, 1), (0, 2, 1), (0, 3, 0.9))
    number = [0, 0, 0, 1]
    assert gone(pairs, [0, 0, 5, 0], most=2, number=number) == [0, 1, 3]
    assert gone(pairs, [0, 0, 5, 9], most=2, number=number) == [0, 1, 2]


def test_pairs_that_a_page_shows_lie_around_the_threshold():
    alike = np.linspace(0.5, 1, 101).round(3)
    pairs = pairs_of(*[(0, i + 1, s) for i, s in enumerate(alike)])
    above, below = just_above(pairs, 0.8), just_below(pairs, 0.8)
    assert above.similarity.tolist() == pytest.approx(alike[60:80].tolist())
    assert below.similarity.tolist() == pytest.approx(alike[40:60][::-1].tolist())
    found = bands(pairs, 0.6)
    assert sum(count for _, _, count, _ in found) == 81
    for low, high, count, some in found:
        assert len(some) == min(6, count)
        assert ((some.similarity >= low) & (some.similarity <= high)).all()
