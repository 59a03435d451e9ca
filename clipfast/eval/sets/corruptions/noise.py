"""Noise: of the sensor, of few photons, of dead pixels."""

import numpy as np

from clipfast.eval.sets.corruptions.fields import Pixels


def gaussian_noise(x: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Normal noise, the same at all brightnesses."""
    return x + (0.04, 0.07, 0.11, 0.16, 0.23)[level] * rng.standard_normal(x.shape)


def shot_noise(x: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """What a sensor sees that counts few photons: Poisson noise."""
    photons = (300, 120, 50, 24, 11)[level]
    return rng.poisson(x * photons) / photons


def impulse_noise(x: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Some values become black or white."""
    share = (0.01, 0.03, 0.07, 0.13, 0.22)[level]
    is_struck = rng.random(x.shape) < share
    return np.where(is_struck, rng.integers(0, 2, x.shape), x)
