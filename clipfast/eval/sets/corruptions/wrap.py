"""A labelled set with all of its images damaged; nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import UnidentifiedImageError

from clipfast.data.rgb import open_rgb
from clipfast.data.unreadable import why_broken, why_unreadable
from clipfast.eval.pillow import middle_square
from clipfast.eval.sets.corruptions.corrupt import check_corruption, corrupt
from clipfast.eval.sets.kinds import LabelledSet
from clipfast.eval.sets.rawpixels import png


def corrupted(
    images: LabelledSet, name: str, severity: int, *, seed: int = 0, at_most: int | None = None
) -> LabelledSet:
    """The same images, damaged as they are read.

    Args:
        images: the set.
        name: one of ``CORRUPTIONS``.
        severity: 1 to 5, or 0.
        seed: of what is random.
        at_most: pixels. A picture with a longer shorter side is first made the square of this side
            from its middle: damage to what a model then shrinks would mostly be averaged away.

    Returns:
        A set called ``NAME-c/CORRUPTION-SEVERITY``, with the labels and words of ``images``.

    Raises:
        ValueError: there is no such corruption or severity.
    """
    check_corruption(name, severity)
    return replace(
        images,
        name=f"{images.name}-c/{name}-{severity}",
        encoded=_Corrupted(images.encoded, name, severity, seed, at_most),
    )


@dataclass(frozen=True)
class _Corrupted:
    """Gives the i-th image, damaged, as a PNG."""

    encoded: Callable[[int], bytes]
    name: str
    severity: int
    seed: int
    at_most: int | None

    def __call__(self, i: int) -> bytes:
        data = self.encoded(i)
        try:
            image = open_rgb(data)
            if self.at_most is not None and min(image.size) > self.at_most:
                image = middle_square(image, self.at_most)
            pixels = np.asarray(image)
        except UnidentifiedImageError:
            raise ValueError(why_unreadable(data)) from None
        except Exception as error:  # Pillow raises many kinds
            raise ValueError(why_broken(data, error)) from error
        return png(corrupt(pixels, self.name, self.severity, seed=self.seed, image=i))
