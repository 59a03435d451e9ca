"""Features as an image tower gives them: shifted, correlated, of classes that overlap."""

from __future__ import annotations

import numpy as np


def problem(
    rows: int, dim: int, classes: int, spread: float = 0.5, seed: int = 0, shift: float = 2.0
) -> tuple[np.ndarray, np.ndarray]:
    """Features ``[N, D]`` float32 and labels ``[N]``, each class at least once.

    Args:
        rows: N.
        dim: D.
        classes: C.
        spread: distance of the classes' centres, in standard deviations.
        seed: of everything drawn, the centres included.
        shift: of all rows, in standard deviations.
    """
    generator = np.random.default_rng(seed)
    mix = generator.standard_normal((dim, dim)) * np.arange(1, dim + 1) ** -0.5
    centres = spread * generator.standard_normal((classes, dim))
    labels = generator.permutation(np.arange(rows) % classes)
    features = (generator.standard_normal((rows, dim)) + centres[labels]) @ mix / dim**0.5
    features += shift * generator.standard_normal(dim)
    return features.astype(np.float32), labels
