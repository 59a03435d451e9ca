"""Features on disk in half precision, each set under the hash of all that it depends on."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import clipfast
from clipfast.eval.encoding import ImageEncoder, Layer
from clipfast.eval.hashes import LOOKED_AT, hash_of_some, image_hash
from clipfast.eval.probe.linear import Labelled
from clipfast.eval.sets import LabelledSet
from clipfast.files import whole_file

_log = logging.getLogger(__name__)
_DIGITS = 16


@dataclass(frozen=True, eq=False)
class StoredFeatures:
    """Features of a set.

    Attributes:
        features: ``[N, D]`` float16, memory-mapped; rows of images that do not decode are NaN.
        readable: ``[N]`` bool, the others.
        path: of the file.
    """

    features: np.ndarray
    readable: np.ndarray
    path: Path

    def labelled(self, labels: np.ndarray) -> Labelled:
        """Those that can be read, with their labels.

        Args:
            labels: of the set.
        """
        if self.readable.all():
            return Labelled(self.features, labels)
        return Labelled(self.features[self.readable], labels[self.readable])


class FeatureCache:
    """Encodes the images of a set once.

    Beside an array ``.npy`` lies a ``.json`` that says what it was made of. One that says otherwise
    is never read, since its name differs.

    Args:
        folder: where the files are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def features(self, encoder: ImageEncoder, images: LabelledSet, layer: Layer) -> StoredFeatures:
        """Features of all images. A collective.

        Args:
            encoder: of the model.
            images: the set.
            layer: see ``ImageEncoder.images``.

        Raises:
            ValueError: no image decodes, or a feature has no value in half precision.
            OSError: the file cannot be written.
        """
        about = _about(encoder, images, layer)
        key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:_DIGITS]
        stem = re.sub(r"[^A-Za-z0-9.-]+", "-", f"{images.name}-{images.split}-{layer}")
        path = self.folder / f"{stem}_{key}.npy"
        is_main = encoder.sharing.rank == 0
        # What rank 0 sees, so that all of them encode, or none.
        is_there = encoder.sharing.gather_objects(path.exists() if is_main else None)[0]
        if not is_there:
            features = half(images, encoder.images(images, layer).numpy())
            if is_main:
                self._write(path, features, about)
        encoder.sharing.wait()
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
        # The first column tells: a row is NaN as a whole.
        readable = ~np.isnan(np.asarray(stored[:, 0]))
        if is_there and is_main and not readable.all():
            _log.warning(
                "%s, split %s: %d of %d images did not decode and are left out",
                images.name,
                images.split,
                int((~readable).sum()),
                len(readable),
            )
        return StoredFeatures(stored, readable, path)

    def _write(self, path: Path, features: np.ndarray, about: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with whole_file(path.with_suffix(".json")) as temporary:
            temporary.write_text(json.dumps(about, indent=1))
        with whole_file(path) as temporary, temporary.open("wb") as file:
            np.save(file, features)


def half(images: LabelledSet, features: np.ndarray) -> np.ndarray:
    """Features in half precision.

    Args:
        images: that they are of, for messages.
        features: ``[N, D]`` float32; rows of images that do not decode are NaN.

    Raises:
        ValueError: no image decodes, or a feature has no value in half precision.
    """
    missing = np.isnan(features).any(1)
    if missing.all():
        raise ValueError(
            f"{images.name}, split {images.split}: none of {len(missing)} images decodes"
        )
    with np.errstate(over="ignore"):
        halved: np.ndarray = features.astype(np.float16)
    bad = np.flatnonzero(~missing & ~np.isfinite(halved).all(1))
    if len(bad):
        raise ValueError(
            f"{images.name}, split {images.split}: the features of {len(bad)} images, the first of "
            f"image {bad[0]}, reach {np.abs(features[bad]).max():.3g}, and half precision ends at "
            "65,504: the weights are of a run that diverged"
        )
    halved[missing] = np.nan
    return halved


def _about(encoder: ImageEncoder, images: LabelledSet, layer: Layer) -> dict[str, Any]:
    return {
        "clipfast": clipfast.__version__,
        "image tower": image_hash(encoder.model),
        "preprocessing": str(encoder.preprocessing),
        "resize": encoder.resize,
        "dtype": str(encoder.dtype),
        "layer": layer,
        "set": images.name,
        "split": images.split,
        "images": len(images),
        "labels": hashlib.sha256(np.ascontiguousarray(images.labels).tobytes()).hexdigest(),
        f"bytes of {LOOKED_AT} images": hash_of_some(images),
    }
