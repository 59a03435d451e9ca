"""Distances on the globe."""

import numpy as np

EARTH_RADIUS_KM = 6371.0088  # the mean radius of the International Union of Geodesy and Geophysics


def great_circle_km(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Length of the shortest way over a sphere of the Earth's mean radius, by the haversine.

        a = sin^2((lat' - lat) / 2) + cos(lat) cos(lat') sin^2((lon' - lon) / 2)
        d = 2 R asin(sqrt(a))

    Args:
        one: ``[..., 2]`` latitude and longitude, degrees.
        other: ``[..., 2]`` likewise.

    Returns:
        ``[...]`` km, from 0 to pi R.
    """
    (lat, lon), (its_lat, its_lon) = (
        np.moveaxis(np.radians(np.asarray(each, np.float64)), -1, 0) for each in (one, other)
    )
    north, east = np.sin((its_lat - lat) / 2) ** 2, np.sin((its_lon - lon) / 2) ** 2
    share = (north + np.cos(lat) * np.cos(its_lat) * east).clip(0, 1)
    distance: np.ndarray = 2 * EARTH_RADIUS_KM * np.arcsin(np.sqrt(share))
    return distance
