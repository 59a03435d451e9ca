"""Weather: snow, frost and fog, drawn by random fields; and bright light."""

import numpy as np

from clipfast.eval.sets.corruptions.fields import (
    Pixels,
    convolve,
    gaussian,
    plasma,
    short_side,
    streak,
)

_ICE = np.array([0.86, 0.93, 1.0])
_FOG = 0.85


def snow(x: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Flakes that fall aslant before a whitened picture."""
    share = (0.008, 0.015, 0.025, 0.04, 0.06)[level]
    white = (0.12, 0.2, 0.28, 0.36, 0.45)[level]
    side = short_side(x)
    drawn, angle = rng.random(x.shape[:2]), rng.uniform(-0.75, -0.25) * np.pi
    fall = streak(max(1.5, 0.05 * side), angle)
    flake = convolve(np.pad(gaussian(max(0.4, 0.005 * side)), len(fall)), fall)
    flakes = convolve((drawn < share).astype(np.float64), flake / flake.max())
    layer = (0.9 * flakes).clip(0, 0.9)[..., None]
    hazed = x + white * (1 - x)
    return hazed + layer * (1 - hazed)


def frost(x: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Crystals on a window: ridges of a random field, bluish white."""
    strength = (0.3, 0.45, 0.58, 0.7, 0.82)[level]
    height, width = x.shape[:2]
    ridges = 1 - np.abs(2 * plasma(height, width, 0.65, rng) - 1)
    patches = plasma(height, width, 0.45, rng)
    cover = (strength * (0.35 + 0.65 * ridges**3) * (0.6 + 0.4 * patches))[..., None]
    return (1 - cover) * x + cover * _ICE * (0.75 + 0.25 * ridges[..., None])


def fog(x: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """A bright veil, denser in some places: a plasma of diamonds and squares."""
    density = (0.3, 0.42, 0.54, 0.66, 0.78)[level]
    veil = density * (0.6 + 0.4 * plasma(len(x), x.shape[1], 0.55, rng))[..., None]
    return (1 - veil) * x + veil * _FOG


def brightness(x: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """More of the value of hue, saturation and value."""
    more = (0.1, 0.2, 0.3, 0.4, 0.5)[level]
    value = x.max(2, keepdims=True)
    lifted = np.minimum(value + more, 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(value > 0, x * (lifted / value), lifted)
