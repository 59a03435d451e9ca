"""Features as an image tower gives them, and their classes; all random, by seed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_SPREAD = 0.35  # of the centres, in standard deviations of a direction
_TEST_ROWS = 20_000  # so that 0.1 point is 20 rows
_CENTRES_IN = 64  # directions that tell classes apart


@dataclass(frozen=True)
class Part:
    """One split.

    Attributes:
        features: ``[N, D]`` float32 on the CPU.
        labels: ``[N]`` int64.
    """

    features: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Problem:
    """A data set in features.

    Attributes:
        train: to learn from.
        validation: to choose lambda on, a quarter of ``train``.
        test: to report on.
        classes: C.
    """

    train: Part
    validation: Part
    test: Part
    classes: int


def make_problem(rows: int, dim: int, classes: int, seed: int) -> Problem:
    """Classes that overlap, in features that are not centred and far from white.

    Args:
        rows: N of the train split.
        dim: D.
        classes: C.
        seed: of everything drawn.
    """
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=generator) * torch.arange(1, dim + 1) ** -0.5 / dim**0.5
    # Two images of CLIP have a cosine of about a half: the mean is as long as what differs from it.
    shift = mix.norm() / dim**0.5 * torch.randn(dim, generator=generator)
    centres = torch.zeros(classes, dim)
    informative = min(_CENTRES_IN, dim)
    centres[:, :informative] = _SPREAD * torch.randn(classes, informative, generator=generator)

    def part(count: int) -> Part:
        labels = torch.randint(classes, (count,), generator=generator)
        white = torch.randn(count, dim, generator=generator) + centres[labels]
        return Part(white @ mix.T + shift, labels)

    return Problem(part(rows), part(-(-rows // 4)), part(_TEST_ROWS), classes)
