"""Single images with the classes that a model thinks most likely (Radford et al. 2021, fig. 21)."""

from __future__ import annotations

import io
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clipfast.data.rgb import open_rgb
from clipfast.eval.ranking import cosines
from clipfast.files import write_whole

# Classes that are shown of an image.
_TOP = 5
# Longer side of a picture, in pixels.
_SIDE = 96
_QUALITY = 80
_SEED = 0
# Images looked at for one that is right, or wrong.
_MOST_LOOKED_AT = 4096
FOLDER = "examples"
# A picture takes about 3 kB.
MOST_EXAMPLES = 1000

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Example:
    """An image, what it is, and what a model says of it.

    Attributes:
        place: of the image in its set.
        classes: that are right; several where an image may have several.
        top: names and probabilities of the likeliest classes, the likeliest first.
        right: whether the first of ``top`` is right.
    """

    place: int
    classes: tuple[str, ...]
    top: tuple[tuple[str, float], ...]
    right: bool

    def as_json(self) -> dict[str, Any]:
        """What stands in a result."""
        return {
            "image": self.place,
            "classes": list(self.classes),
            "top": [{"name": name, "probability": p} for name, p in self.top],
            "right": self.right,
        }


def pick_examples(
    features: Tensor,
    classifier: Tensor,
    labels: Tensor,
    names: Sequence[str],
    scale: float,
    places: Tensor,
    count: int,
) -> list[Example]:
    """Some images that are right and as many that are wrong, in a random order.

        p = softmax(scale * cos(image, w_c))

    Where one kind is rare the other fills its places. The same images on every machine.

    Args:
        features: ``[N, D]``.
        classifier: ``[C, D]``.
        labels: ``[N]`` int64, or ``[N, C]`` bool.
        names: C class names.
        scale: exp(logit_scale), the learned one.
        places: ``[N]`` int64, of the images in their set.
        count: of images, at most.

    Returns:
        ``count`` examples, fewer of a smaller set.
    """
    if not count:
        return []
    order = np.random.default_rng(_SEED).permutation(len(features))[:_MOST_LOOKED_AT]
    drawn = torch.from_numpy(order)
    scores = cosines(features[drawn], classifier)
    # A stable order: of equal classes the first is named, as in the metrics.
    ranked = scores.argsort(dim=1, descending=True, stable=True)[:, :_TOP]
    probabilities = (scale * scores).softmax(1)
    truth = labels[drawn]
    first = ranked[:, :1]
    is_right = (truth.gather(1, first) if truth.ndim == 2 else truth[:, None] == first)[:, 0]
    right, wrong = (kind.nonzero()[:, 0].tolist() for kind in (is_right, ~is_right))
    from_right = min(len(right), max((count + 1) // 2, count - len(wrong)))
    chosen = sorted(right[:from_right] + wrong[: count - from_right])
    return [
        Example(
            int(places[drawn[row]]),
            tuple(names[c] for c in _classes(truth[row])),
            tuple((names[c], float(probabilities[row, c])) for c in ranked[row].tolist()),
            bool(is_right[row]),
        )
        for row in chosen
    ]


def write_examples(
    examples: Sequence[Example], encoded: Callable[[int], bytes], result: Path
) -> list[dict[str, Any]]:
    """Write small pictures of the examples beside their result.

    They are ``examples/<name of the result>/<place>.jpg``, of at most 96 pixels. What an earlier
    run left there is removed.

    Args:
        examples: of ``pick_examples``.
        encoded: gives the i-th image of the set, as a file.
        result: path of the result's JSON.

    Returns:
        What stands in the result, with ``file`` from the result's folder on.

    Raises:
        OSError: a file cannot be written.
    """
    folder = result.parent / FOLDER / result.stem
    shutil.rmtree(folder, ignore_errors=True)
    found = []
    for example in examples:
        try:
            picture = _thumbnail(encoded(example.place))
        except Exception as error:  # Pillow raises many kinds
            _log.warning("image %d has no picture among the examples: %s", example.place, error)
            continue
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{example.place}.jpg"
        write_whole(path, picture, sync=False)
        found.append({"file": path.relative_to(result.parent).as_posix(), **example.as_json()})
    return found


def _classes(truth: Tensor) -> list[int]:
    return truth.nonzero()[:, 0].tolist() if truth.ndim else [int(truth)]


def _thumbnail(data: bytes) -> bytes:
    image = open_rgb(data)
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()
