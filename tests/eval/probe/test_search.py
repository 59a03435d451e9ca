"""The search for lambda against a full sweep."""

import pytest

from clipfast.eval.probe import search, strength, sweep


def one_peak(peak, width=None):
    """Rises to a peak and falls behind it; flat around it where ``width`` says so."""
    return lambda steps: [-max(abs(step - peak), width or 0) for step in steps]


@pytest.mark.parametrize("peak", range(97))
def test_search_finds_a_peak_as_a_sweep_does_with_15_fits(peak):
    found, every = search(one_peak(peak)), sweep(one_peak(peak))
    assert found.best == every.best == peak
    assert len(every.scores) == 97
    assert len(found.scores) <= 15
    assert {s: every.scores[s] for s in found.scores} == found.scores


def test_search_of_equal_scores_takes_the_strongest():
    for score in (one_peak(40, 6), lambda steps: [0.5] * len(steps)):
        assert search(score).best == sweep(score).best
    assert search(one_peak(40, 6)).best == 46
    assert search(lambda steps: [0.5] * len(steps)).best == 96


def test_search_asks_round_by_round():
    rounds = []

    def score(steps):
        rounds.append(list(steps))
        return one_peak(36)(steps)

    assert search(score).best == 36
    assert rounds[0] == [0, 16, 32, 48, 64, 80, 96]
    assert rounds[1:] == [[24, 40], [36, 44], [34, 38], [35, 37]]


def test_strength_has_eight_steps_a_decade_from_1e_6_to_1e6():
    assert strength(0) == pytest.approx(1e-6)
    assert strength(96) == pytest.approx(1e6)
    assert strength(48) == 1.0
    assert strength(49) == pytest.approx(10 ** (1 / 8))


def test_search_says_that_its_best_is_at_the_edge():
    assert search(one_peak(0)).is_at_edge
    assert search(one_peak(96)).is_at_edge
    assert not search(one_peak(95)).is_at_edge
