"""Geolocation by nearest neighbours."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from clipfast.eval.encoding import ImageEncoder
from clipfast.eval.geolocation.distance import great_circle_km
from clipfast.eval.geolocation.nearest import Nearest
from clipfast.eval.geolocation.places import PlacedSet
from clipfast.eval.intervals import clopper_pearson
from clipfast.eval.readable import check_finite, readable_features

TASK = "geolocation"
THRESHOLDS_KM = (1, 25, 200, 750, 2500)
PART = 65_536  # references that are encoded, compared and forgotten at a time


@dataclass(frozen=True, eq=False)
class Geolocation:
    """How far off the places of nearest neighbours are.

    Attributes:
        queries: name of the set.
        references: name of the other.
        split: of the queries.
        compared_with: references that decode.
        distance_km: ``[Q]`` float64, of the queries that decode.
        ties: queries with several nearest references; the first of these counts.
        unreadable: images that do not decode and are left out, of queries and of references.
        seconds: that all of it took.
    """

    queries: str
    references: str
    split: str
    compared_with: int
    distance_km: np.ndarray
    ties: int
    unreadable: tuple[int, int]
    seconds: float

    @property
    def hits(self) -> dict[int, int]:
        """Queries within each of ``THRESHOLDS_KM``."""
        return {km: int((self.distance_km <= km).sum()) for km in THRESHOLDS_KM}

    @property
    def metrics(self) -> dict[str, float | None]:
        """``within_N_km``, shares in [0, 1], and ``median_km``."""
        count = len(self.distance_km)
        shares: dict[str, float | None] = {
            f"within_{km}_km": hits / count for km, hits in self.hits.items()
        }
        return {**shares, "median_km": float(np.median(self.distance_km))}

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """Of the shares, Clopper-Pearson at 99.5%."""
        count = len(self.distance_km)
        return {f"within_{km}_km": clopper_pearson(n, count) for km, n in self.hits.items()}

    def as_json(self) -> dict[str, Any]:
        """What stands in the results beside CLIP_benchmark's keys."""
        return {
            "split": self.split,
            "images": len(self.distance_km),
            "references": self.references,
            "reference_images": self.compared_with,
            "intervals": self.intervals,
            "ties": self.ties,
            "unreadable": {"queries": self.unreadable[0], "references": self.unreadable[1]},
            "seconds": self.seconds,
        }

    @property
    def lines(self) -> list[str]:
        """For a person."""
        lines = [
            f"{self.queries} ({self.split}, {len(self.distance_km)} images) by the nearest of "
            f"{self.compared_with} images of {self.references}",
            f"{'within':>10}{'share':>9}{'99.5% interval':>20}",
        ]
        for km in THRESHOLDS_KM:
            low, high = self.intervals[f"within_{km}_km"]
            share = self.metrics[f"within_{km}_km"]
            lines.append(f"{f'{km:,} km':>10}{share:>9.2%}{f'{low:.2%} to {high:.2%}':>20}")
        lines.append(f"median distance {self.metrics['median_km']:,.1f} km")
        if self.ties:
            lines.append(f"{self.ties} image(s) have several nearest references: the first counts")
        for what, count in zip(("queries", "references"), self.unreadable, strict=True):
            if count:
                lines.append(f"{count} of the {what} do not decode and are left out")
        return lines


def geolocate(encoder: ImageEncoder, references: PlacedSet, queries: PlacedSet) -> Geolocation:
    """Give each query the place of the reference whose features are most similar. A collective.

    References are encoded in parts of 65,536, so that beside their places none are kept. Ranks
    share the images of each part, and the queries.

    Args:
        encoder: of the model.
        references: images whose places are known.
        queries: images whose places are guessed.

    Returns:
        The same on every rank.

    Raises:
        ValueError: no image of one of them decodes, or a feature is not finite.

    Radford et al. 2021, appendix E.4.
    """
    begin = time.perf_counter()
    asked = readable_features(encoder, queries)
    sharing = encoder.sharing
    mine = sharing.part(len(asked.features))
    nearest = Nearest(asked.features[mine.start : mine.stop])
    compared = 0
    starts = range(0, len(references), PART)
    is_quiet = True if sharing.rank or len(starts) == 1 else None
    for start in tqdm(starts, "references", unit="part", leave=False, disable=is_quiet):
        part = _Part(references, start, min(PART, len(references) - start))
        features = encoder.images(part)
        kept = torch.ones(len(part), dtype=torch.bool)
        kept[list(encoder.unreadable)] = False
        check_finite(part.name, "image", features[kept])
        nearest.add(features[kept], start + kept.nonzero()[:, 0])
        compared += int(kept.sum())
    if not compared:
        raise ValueError(f"{references.name}: none of {len(references)} images decodes")
    count = len(asked.features)
    place = sharing.gather(nearest.place, count).numpy()
    ties = sharing.gather(nearest.ties, count)
    there = queries.coordinates[asked.kept.numpy()]
    return Geolocation(
        queries=queries.name,
        references=references.name,
        split=queries.split,
        compared_with=compared,
        distance_km=great_circle_km(there, references.coordinates[place]),
        ties=int((ties > 1).sum()),
        unreadable=(len(asked.unreadable), len(references) - compared),
        seconds=time.perf_counter() - begin,
    )


@dataclass(frozen=True)
class _Part:
    """Some of the references, as the decoder takes them."""

    every: PlacedSet
    start: int
    count: int

    @property
    def name(self) -> str:
        return f"{self.every.name} from image {self.start}"

    def __len__(self) -> int:
        return self.count

    def encoded(self, i: int, /) -> bytes:
        return self.every.encoded(self.start + i)
