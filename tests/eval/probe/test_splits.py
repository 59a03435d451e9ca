"""Rows cut off and rows drawn."""

import numpy as np
import pytest
import torch

from clipfast.eval.probe.labels import Targets
from clipfast.eval.probe.splits import cut, draw, folds

COUNTS = (50, 7, 2, 1, 0)


def targets_of(counts, seed=0):
    labels = np.repeat(np.arange(len(counts)), counts)
    shuffled = np.random.default_rng(seed).permutation(labels)
    return Targets(torch.from_numpy(shuffled), len(counts))


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_cut_takes_its_share_of_each_class(share):
    targets = targets_of(COUNTS)
    learn, held = cut(targets, share, seed=3)
    assert sorted([*learn, *held]) == list(range(60))
    assert (np.diff(learn) > 0).all()
    assert (np.diff(held) > 0).all()
    assert targets.take(held).counts().tolist() == [50 * share, round(7 * share), 1, 0, 0]


def test_cut_is_its_seeds():
    targets = targets_of(COUNTS)
    first, again, other = (cut(targets, 0.2, seed)[1].tolist() for seed in (1, 1, 2))
    assert first == again != other


def test_cut_of_rows_with_several_classes_takes_a_share_of_the_rows():
    targets = Targets(torch.ones(50, 3, dtype=torch.bool), 3)
    learn, held = cut(targets, 0.2, seed=0)
    assert (len(learn), len(held)) == (40, 10)


@pytest.mark.parametrize(
    ("counts", "share", "told"),
    [((9, 9), 0.0, "got 0.0"), ((9, 9), 1.0, "got 1.0"), ((1, 1), 0.2, "no class has two rows")],
)
def test_cut_refuses_by_name(counts, share, told):
    with pytest.raises(ValueError, match=told):
        cut(targets_of(counts), share, 0)


def test_draw_gives_every_class_its_rows_and_fewer_are_part_of_more():
    targets = targets_of((50, 7, 20))
    drawn = {shots: draw(targets, shots, seed=5) for shots in (1, 2, 7)}
    for shots, places in drawn.items():
        assert len(set(places.tolist())) == 3 * shots
        assert targets.labels[places].tolist() == [0, 1, 2] * shots
        assert places.tolist() == drawn[7][: 3 * shots].tolist()
    assert draw(targets, 7, seed=6).tolist() != drawn[7].tolist()


def test_draw_names_classes_with_too_few_rows():
    with pytest.raises(ValueError, match=r"2 of 3 classes have fewer \('b' has 7, 'c' has 2\)"):
        draw(targets_of((50, 7, 2)), 8, 0, ["a", "b", "c"])
    with pytest.raises(ValueError, match="one class per row"):
        draw(Targets(torch.ones(5, 3, dtype=torch.bool), 3), 1, 0)


@pytest.mark.parametrize(("shots", "number"), [(2, 4), (3, 2), (8, 4), (16, 4)])
def test_folds_hold_out_every_row_once_and_classes_alike(shots, number):
    parts = folds(shots, 5, number)
    assert len(parts) == min(shots, number)
    assert sorted(np.concatenate([held for _, held in parts])) == list(range(5 * shots))
    for learn, held in parts:
        assert sorted([*learn, *held]) == list(range(5 * shots))
        assert len(set(np.bincount(held % 5))) == 1
