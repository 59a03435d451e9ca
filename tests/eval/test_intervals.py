"""The interval of a share against scipy's."""

import pytest

from clipfast.eval.intervals import clopper_pearson

CASES = [(0, 1), (1, 1), (0, 7), (3, 7), (7, 7), (1, 252), (126, 252), (38_115, 50_000)]


@pytest.mark.needs("scipy")
@pytest.mark.parametrize("level", [0.2, 0.95, 0.995])
@pytest.mark.parametrize(("successes", "trials"), [*CASES, (999_999, 1_000_000)])
def test_clopper_pearson_is_scipys(successes, trials, level):
    from scipy.stats import binomtest

    low, high = clopper_pearson(successes, trials, level)
    expected = binomtest(successes, trials).proportion_ci(level, method="exact")
    assert low == pytest.approx(expected.low, rel=1e-7, abs=1e-12)
    assert high == pytest.approx(expected.high, rel=1e-7, abs=1e-12)


def test_clopper_pearson_is_the_papers_995_by_default():
    assert clopper_pearson(3, 7) == clopper_pearson(3, 7, 0.995) != clopper_pearson(3, 7, 0.95)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [((0, 0), "0 of 0"), ((8, 7), "8 of 7"), ((-1, 7), "-1 of 7"), ((1, 7, 99.5), "99.5")],
)
def test_clopper_pearson_refuses_by_name(arguments, told):
    with pytest.raises(ValueError, match=told):
        clopper_pearson(*arguments)
