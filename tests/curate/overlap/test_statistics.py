"""The statistics of overlap: against scipy, by hand, and at their edges."""

import numpy as np
import pytest

from clipfast.curate.overlap.answers import read_answers
from clipfast.curate.overlap.statistics import effect, significant

pytestmark = pytest.mark.needs("scipy")


def measured(overlap: tuple[int, int], clean: tuple[int, int]):
    """Of right answers and images on both parts, in a mixed order."""
    flags = []
    for (right, images), held in ((overlap, True), (clean, False)):
        flags += [(i < right, held) for i in range(images)]
    order = np.random.default_rng(0).permutation(len(flags))
    correct, held = np.array(flags, bool).reshape(-1, 2)[order].T
    return effect(correct, held)


@pytest.mark.parametrize(
    ("overlap", "clean"), [((7, 11), (40, 89)), ((1, 1), (1, 3)), ((95, 123), (5000, 7877))]
)
def test_effect_equals_scipy(overlap, clean):
    from scipy.stats import binom, binomtest

    found = measured(overlap, clean)
    share = clean[0] / clean[1]
    # P(X >= k) is the sum of the tail.
    tail = binom.pmf(np.arange(overlap[0], overlap[1] + 1), overlap[1], share).sum()
    assert found.p_value == pytest.approx(tail, rel=1e-9)
    wanted = binomtest(*overlap).proportion_ci(0.995, "exact")
    assert found.interval == pytest.approx((wanted.low, wanted.high), abs=1e-9)
    assert found.difference_interval == pytest.approx((wanted.low - share, wanted.high - share))
    every = (overlap[0] + clean[0]) / (overlap[1] + clean[1])
    assert found.all.share == pytest.approx(every)
    assert found.gain == pytest.approx(every - share)
    assert found.difference == pytest.approx(overlap[0] / overlap[1] - share)


def test_effect_by_hand():
    # Two of two right where a coin would be right half of the time.
    found = measured((2, 2), (2, 4))
    assert found.p_value == pytest.approx(0.25)
    assert found.gain == pytest.approx(4 / 6 - 1 / 2)
    assert found.as_json()["overlap"] == {"images": 2, "right": 2, "accuracy": 1.0}


@pytest.mark.parametrize(
    ("overlap", "clean", "p_value"),
    [
        ((0, 0), (3, 4), None),  # nothing overlaps
        ((3, 4), (0, 0), None),  # all do
        ((0, 0), (0, 0), None),
        ((0, 5), (0, 5), 1.0),  # accuracy 0
        ((1, 5), (0, 5), 0.0),
        ((5, 5), (5, 5), 1.0),  # accuracy 1
        ((4, 5), (5, 5), 1.0),
        ((0, 5), (3, 5), 1.0),
    ],
)
def test_effect_at_its_edges(overlap, clean, p_value):
    found = measured(overlap, clean)
    assert found.p_value == (p_value if p_value is None else pytest.approx(p_value, abs=1e-12))
    if not overlap[1]:
        assert found.interval is found.difference is found.difference_interval is None
        assert found.gain == (0 if clean[1] else None)
    if not clean[1]:
        assert found.gain is found.difference_interval is None
    if overlap == (0, 5):
        assert found.interval[0] == 0
    if overlap == (5, 5):
        assert found.interval[1] == 1


def test_significant_counts_the_tests():
    assert significant(None, 3) == significant(0.05, 3) == "no"
    assert significant(0.049, 1) == "Bonferroni"
    assert significant(0.049, 2) == "yes"
    assert significant(0.0249, 2) == "Bonferroni"


@pytest.mark.needs("pyarrow")
def test_answers_are_read_as_they_are_written(tmp_path):
    import pyarrow
    import pyarrow.parquet

    text = "row,label,predicted,correct\n4,cat,cat,1\n0,dog,cat,0\n2,dog,dog,True\n"
    (tmp_path / "a.csv").write_text(text)
    table = pyarrow.table({"row": [4, 0, 2], "correct": [True, False, True]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    for name in ("a.csv", "a.parquet"):
        rows, correct = read_answers(str(tmp_path / name), 5)
        assert rows.tolist() == [0, 2, 4]
        assert correct.tolist() == [False, True, True]
        with pytest.raises(
            ValueError, match=r"each row once, of 0 to 3; it has 3 rows from 0 to 4"
        ):
            read_answers(str(tmp_path / name), 4)


@pytest.mark.needs("pyarrow")
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no answers|each row once"),
        ("row,correct\n", "it has 0 rows"),
        ("row,correct\n1,1\n1,0\n", "each row once"),
        ("row,right\n1,1\n", "holds no answers .'correct'."),
        ("row,correct\n1,maybe\n", "holds no answers .'maybe'."),
        ("row,correct\none,1\n", "holds no answers"),
        ("row,correct\n-1,1\n", "each row once"),
    ],
)
def test_answers_that_are_none_are_refused(tmp_path, text, said):
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
        read_answers(str(path), 5)
    path = tmp_path / "a.parquet"
    path.write_text(text)
    with pytest.raises(ValueError, match="holds no answers"):
        read_answers(str(path), 5)
