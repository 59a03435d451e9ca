"""A picture's pixels as a vector: the product of two is their normalised cross-correlation.

    y = x - mean over places;  vector = y / |y|

of brightness at 16 x 16 points, and of two colours at 8 x 8: an eye sees less of colours too. It
knows nothing, and is sure where nothing has moved. What a tower knows and what pixels say go wrong
on other pictures.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_SIDE = 16
# Brightness, red against blue, green against both: directions of length 1, at right angles.
_DIRECTIONS = (
    (3**-0.5, 3**-0.5, 3**-0.5),
    (2**-0.5, 0.0, -(2**-0.5)),
    (6**-0.5, -2 * 6**-0.5, 6**-0.5),
)


def pixel_vectors(squares: Tensor) -> Tensor:
    """Vectors of squares.

    Args:
        squares: ``[N, S, S, 3]`` uint8.

    Returns:
        ``[N, 384]`` float32, rows of length 1; 0 for a square of one colour.
    """
    pixels = F.adaptive_avg_pool2d(squares.permute(0, 3, 1, 2).float(), _SIDE)
    directions = torch.tensor(_DIRECTIONS, device=squares.device)
    planes = torch.einsum("dc,nchw->ndhw", directions, pixels)
    planes = planes - planes.mean(dim=(2, 3), keepdim=True)
    # Four points are one: doubled, it weighs as much as they do.
    colours = 2 * F.avg_pool2d(planes[:, 1:], 2)
    return F.normalize(torch.cat([planes[:, :1].flatten(1), colours.flatten(1)], dim=1), eps=1e-3)
