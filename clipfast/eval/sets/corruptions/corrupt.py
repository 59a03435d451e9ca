"""One corruption of one image."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np

from clipfast.eval.sets.corruptions import blur, digital, noise, weather
from clipfast.names import did_you_mean

_Corruption = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]
# By group, in the paper's order.
_FUNCTIONS: dict[str, tuple[_Corruption, ...]] = {
    "noise": (noise.gaussian_noise, noise.shot_noise, noise.impulse_noise),
    "blur": (blur.defocus_blur, blur.glass_blur, blur.motion_blur, blur.zoom_blur),
    "weather": (weather.snow, weather.frost, weather.fog, weather.brightness),
    "digital": (
        digital.contrast,
        digital.elastic_transform,
        digital.pixelate,
        digital.jpeg_compression,
    ),
}
_BY_NAME = {one.__name__: one for group in _FUNCTIONS.values() for one in group}

CORRUPTIONS = tuple(_BY_NAME)
GROUPS = {group: tuple(one.__name__ for one in ones) for group, ones in _FUNCTIONS.items()}
SEVERITIES = (1, 2, 3, 4, 5)


def corrupt(
    pixels: np.ndarray, name: str, severity: int, *, seed: int = 0, image: int = 0
) -> np.ndarray:
    """Damage an image.

    What is random depends on seed, name and number of the image alone. So all severities have the
    same noise, the same flakes and the same fog, and more of it.

    Args:
        pixels: ``[H, W, 3]`` uint8.
        name: one of ``CORRUPTIONS``.
        severity: 1 to 5; 0 leaves the image as it is.
        seed: of what is random.
        image: number of the image in its set.

    Returns:
        ``[H, W, 3]`` uint8.

    Raises:
        ValueError: there is no such corruption or severity, or the pixels have another form.
    """
    check_corruption(name, severity)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or not pixels.size:
        raise ValueError(
            f"pixels must be uint8 [H, W, 3] and not empty; got {pixels.dtype} {list(pixels.shape)}"
        )
    if severity == 0:
        return pixels.copy()
    rng = np.random.default_rng([seed, zlib.crc32(name.encode()), image])
    found = _BY_NAME[name](pixels / 255, severity - 1, rng)
    return np.rint(found.clip(0, 1) * 255).astype(np.uint8)


def check_corruption(name: str, severity: int) -> None:
    """Refuse what is not known.

    Args:
        name: of a corruption.
        severity: 0 to 5.

    Raises:
        ValueError: with what is known.
    """
    if name not in _BY_NAME:
        raise ValueError(
            f"there is no corruption {name!r}.{did_you_mean(name, CORRUPTIONS)} Known: "
            f"{', '.join(CORRUPTIONS)}"
        )
    if severity not in (0, *SEVERITIES) or isinstance(severity, bool):
        raise ValueError(f"severity of {name} must be 1 to 5, or 0 for none; got {severity!r}")
