"""Fifteen corruptions of images, each in five severities: a shift of any labelled set.

    foggy = corrupted(images, "fog", 3)         # a LabelledSet; no file is written
    corrupt(pixels, "gaussian_noise", 5, seed=0)

They have the names and kinds of Hendrycks & Dietterich 2019, section 4.1: noise, blur, weather and
digital. The severities are of this package, in shares of an image's shorter side. So results
compare models with each other, and not with published ones on ImageNet-C or CIFAR-10-C.
"""

from clipfast.eval.sets.corruptions.corrupt import (
    CORRUPTIONS,
    GROUPS,
    SEVERITIES,
    check_corruption,
    corrupt,
)
from clipfast.eval.sets.corruptions.wrap import corrupted

__all__ = ["CORRUPTIONS", "GROUPS", "SEVERITIES", "check_corruption", "corrupt", "corrupted"]
