"""Rows cut off to choose on, and few rows per class; drawn by seed, the same on every machine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clipfast.eval.probe.labels import Targets


def cut(targets: Targets, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two parts of some rows: one to learn from, one to choose lambda on.

    Stratified: each class gives ``share`` of its rows, to the nearest number. It keeps one row at
    least, and gives one where it has two and ``share`` rounds to none. Rows of several classes are
    drawn without looking at them.

    Args:
        targets: of the rows.
        share: of the second part, in (0, 1).
        seed: of the draw.

    Returns:
        The places of the rows of each part, ascending.

    Raises:
        ValueError: the share is out of its range, or a part would be empty.
    """
    if not 0.0 < share < 1.0:
        raise ValueError(f"share of the validation part: expected a number in (0, 1), got {share}")
    generator = np.random.default_rng(seed)
    if targets.is_softmax:
        groups = _shuffled_classes(targets, generator)
    else:
        groups = [generator.permutation(len(targets))]
    held = np.concatenate([group[: _held(len(group), share)] for group in groups])
    is_held = np.zeros(len(targets), bool)
    is_held[held] = True
    if not is_held.any() or is_held.all():
        raise ValueError(
            f"{len(targets)} rows cannot give a validation part of {share:.0%}: no class has two "
            "rows. Give a validation split"
        )
    return np.flatnonzero(~is_held), np.flatnonzero(is_held)


def draw(
    targets: Targets, shots: int, seed: int, classnames: Sequence[str] | None = None
) -> np.ndarray:
    """Rows of a few-shot training set. With one seed, fewer shots are part of more.

    Args:
        targets: of the rows to draw from, one class each.
        shots: rows per class.
        seed: of the draw.
        classnames: C names, for messages.

    Returns:
        ``[shots * C]`` places: the first row of each class, then the second of each, and so on.

    Raises:
        ValueError: a class has fewer rows; names it. Or rows have several classes.
    """
    if not targets.is_softmax:
        raise ValueError("few-shot needs one class per row: these rows may have several")
    counts = targets.counts()
    few = (counts < shots).nonzero()[:, 0].tolist()
    if few:
        told = ", ".join(
            f"{c if classnames is None else classnames[c]!r} has {int(counts[c])}" for c in few[:10]
        )
        raise ValueError(
            f"{shots} rows per class: {len(few)} of {targets.classes} classes have fewer ({told}). "
            "Draw fewer, or leave these classes out"
        )
    groups = _shuffled_classes(targets, np.random.default_rng(seed))
    return np.stack([group[:shots] for group in groups], axis=1).reshape(-1)


def folds(shots: int, classes: int, number: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Parts of the rows of ``draw`` for cross-validation, with equally many rows of each class.

    Args:
        shots: rows per class, at least 2.
        classes: C.
        number: of folds at most; there are no more than shots.

    Returns:
        Places among the rows of ``draw``: to learn from, and held out, for each fold.
    """
    shot = np.repeat(np.arange(shots), classes)
    fold = shot % min(number, shots)
    return [(np.flatnonzero(fold != f), np.flatnonzero(fold == f)) for f in range(fold.max() + 1)]


def _held(rows: int, share: float) -> int:
    if rows < 2:
        return 0
    return min(max(round(share * rows), 1), rows - 1)


def _shuffled_classes(targets: Targets, generator: np.random.Generator) -> list[np.ndarray]:
    """The rows of each class in a random order."""
    labels = targets.labels.numpy()
    # One draw for all rows, so that a class does not depend on how many classes come before it.
    order = np.argsort(generator.random(len(labels)), kind="stable")
    by_class = order[np.argsort(labels[order], kind="stable")]
    return np.split(by_class, np.cumsum(targets.counts().numpy())[:-1])
