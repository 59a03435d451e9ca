"""Where an image was taken: at the place of the most similar one whose place is known.

Source: Radford et al. 2021, appendix E.4.
"""

from clipfast.eval.geolocation.distance import EARTH_RADIUS_KM, great_circle_km
from clipfast.eval.geolocation.locate import THRESHOLDS_KM, Geolocation, geolocate
from clipfast.eval.geolocation.nearest import Nearest
from clipfast.eval.geolocation.places import PlacedSet, open_places

__all__ = [
    "EARTH_RADIUS_KM",
    "THRESHOLDS_KM",
    "Geolocation",
    "Nearest",
    "PlacedSet",
    "geolocate",
    "great_circle_km",
    "open_places",
]
