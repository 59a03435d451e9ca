"""Ranges that are read as one."""

import numpy as np
import pytest

from clipfast.storage.ranges import join


def test_ranges_close_together_are_one():
    ranges = np.array([(5000, 10), (0, 100), (100, 50), (1200, 10), (20, 300)])
    joined, rows = join(ranges, 0)
    assert joined.tolist() == [[0, 320], [1200, 10], [5000, 10]]
    assert rows.tolist() == [2, 0, 0, 1, 0]
    joined, rows = join(ranges, 1000)
    assert joined.tolist() == [[0, 1210], [5000, 10]]
    assert rows.tolist() == [1, 0, 0, 0, 0]


@pytest.mark.parametrize("count", [0, 1, 7, 507])
@pytest.mark.parametrize("gap", [0, 1024])
def test_ranges_are_joined_as_one_by_one_would(count, gap):
    draw = np.random.default_rng(count)
    ranges = np.stack([draw.integers(0, 10**6, count), draw.integers(0, 3000, count)], 1)
    expected: list[list[int]] = []
    for offset, size in sorted(ranges.tolist()):
        if expected and offset <= expected[-1][1] + gap:
            expected[-1][1] = max(expected[-1][1], offset + size)
        else:
            expected.append([offset, offset + size])
    joined, rows = join(ranges, gap)
    assert [[at, at + size] for at, size in joined.tolist()] == expected
    for (offset, size), row in zip(ranges.tolist(), rows.tolist(), strict=True):
        assert expected[row][0] <= offset <= offset + size <= expected[row][1]
