"""What corruptions are made of: sampling between pixels, convolution, and random fields."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

Pixels = np.ndarray  # [H, W, 3] float64 in [0, 1]
_POINTS_PER_PIXEL = 6  # along each axis, where the area of a kernel is filled with points


def sample(x: Pixels, rows: np.ndarray, columns: np.ndarray) -> Pixels:
    """Values between pixels, linear in both directions; beyond the edge is the edge.

    Args:
        x: ``[H, W, C]`` or ``[H, W]``.
        rows: ``[h, w]`` real row numbers.
        columns: ``[h, w]`` likewise.

    Returns:
        ``[h, w, C]`` or ``[h, w]``.
    """
    rows = rows.clip(0, len(x) - 1)
    columns = columns.clip(0, x.shape[1] - 1)
    top, left = rows.astype(np.int64), columns.astype(np.int64)
    down, right = np.minimum(top + 1, len(x) - 1), np.minimum(left + 1, x.shape[1] - 1)
    v, u = rows - top, columns - left
    if x.ndim == 3:
        v, u = v[..., None], u[..., None]
    above = x[top, left] * (1 - u) + x[top, right] * u
    below = x[down, left] * (1 - u) + x[down, right] * u
    return above * (1 - v) + below * v


def grid(x: Pixels) -> tuple[np.ndarray, np.ndarray]:
    """Row and column numbers of all pixels, each ``[H, W]`` float64."""
    indices = np.indices(x.shape[:2], dtype=np.float64)
    return indices[0], indices[1]


def convolve(x: Pixels, kernel: np.ndarray) -> Pixels:
    """Convolution of each channel; beyond the edge the picture is mirrored.

    Args:
        x: ``[H, W]`` or ``[H, W, C]``.
        kernel: ``[K, K]``, K odd.
    """
    half = len(kernel) // 2
    planes = np.moveaxis(np.atleast_3d(x), 2, 0)
    padded = np.pad(planes, ((0, 0), (half, half), (half, half)), "symmetric")
    shape = padded.shape[1:]
    product = np.fft.rfft2(padded) * np.fft.rfft2(kernel, shape)
    blurred = np.fft.irfft2(product, shape)[:, 2 * half :, 2 * half :]
    return np.moveaxis(blurred, 0, 2).reshape(x.shape)


def splat(rows: np.ndarray, columns: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """The kernel that averages a picture over some points, values between pixels being linear.

    Args:
        rows: of the points, from the middle of the kernel.
        columns: likewise.
        weights: of the points; None: equal ones.

    Returns:
        ``[K, K]``, K odd, sum 1.
    """
    weights = np.ones(len(rows)) if weights is None else weights
    half = int(np.ceil(max(np.abs(rows).max(), np.abs(columns).max()))) + 1
    kernel = np.zeros((2 * half + 1, 2 * half + 1))
    top, left = np.floor(rows).astype(np.int64), np.floor(columns).astype(np.int64)
    v, u = rows - top, columns - left
    for down, by_row in ((0, 1 - v), (1, v)):
        for right, by_column in ((0, 1 - u), (1, u)):
            place = (top + half + down, left + half + right)
            np.add.at(kernel, place, weights * by_row * by_column)
    return kernel / kernel.sum()


@lru_cache(maxsize=256)
def disc(radius: float) -> np.ndarray:
    """The kernel of a lens out of focus: the mean over a disc.

    Args:
        radius: pixels.
    """
    count = max(3, int(np.ceil(radius * _POINTS_PER_PIXEL)))
    steps = (np.arange(-count, count + 1) / count) * radius
    rows, columns = (axis.ravel() for axis in np.meshgrid(steps, steps, indexing="ij"))
    inside = rows**2 + columns**2 <= radius**2 * (1 + 1e-9)
    return splat(rows[inside], columns[inside])


@lru_cache(maxsize=256)
def gaussian(sigma: float) -> np.ndarray:
    """The kernel of a normal distribution, to three sigma."""
    half = max(1, int(np.ceil(3 * sigma)))
    line = np.exp(-0.5 * (np.arange(-half, half + 1) / sigma) ** 2)
    kernel = np.outer(line, line)
    return kernel / kernel.sum()


def streak(length: float, angle: float) -> np.ndarray:
    """The kernel of a movement along a line.

    Args:
        length: pixels.
        angle: radians, from the row towards lower rows.
    """
    count = max(2, int(np.ceil(length * _POINTS_PER_PIXEL)))
    along = np.linspace(-length / 2, length / 2, count)
    return splat(-np.sin(angle) * along, np.cos(angle) * along)


def plasma(height: int, width: int, roughness: float, rng: np.random.Generator) -> np.ndarray:
    """A random field with detail at every scale, by diamonds and squares.

    The corners of a square give its middle, and the middles give its edges. Each is the mean of its
    four neighbours and a random part, which shrinks by ``roughness`` per halving. The field repeats
    at its edges, so every point has four neighbours.

    Args:
        height: H.
        width: W.
        roughness: in (0, 1); larger is rougher.
        rng: of the random parts.

    Returns:
        ``[H, W]`` from 0 to 1.
    """
    side = 1 << max(1, int(np.ceil(np.log2(max(height, width)))))
    field = np.zeros((side, side))
    step, amount = side, 1.0
    while step > 1:
        half = step // 2
        corners = field[::step, ::step]
        count = corners.shape[0]
        pairs = corners + np.roll(corners, -1, 0)
        middles = (pairs + np.roll(pairs, -1, 1)) / 4
        middles = middles + amount * rng.uniform(-1, 1, (count, count))
        field[half::step, half::step] = middles
        beside = corners + np.roll(corners, -1, 1) + middles + np.roll(middles, 1, 0)
        field[::step, half::step] = beside / 4 + amount * rng.uniform(-1, 1, (count, count))
        above = corners + np.roll(corners, -1, 0) + middles + np.roll(middles, 1, 1)
        field[half::step, ::step] = above / 4 + amount * rng.uniform(-1, 1, (count, count))
        step, amount = half, amount * roughness
    field = field[:height, :width]
    low, high = field.min(), field.max()
    return np.zeros_like(field) if high == low else (field - low) / (high - low)


def smooth(height: int, width: int, cell: float, rng: np.random.Generator) -> np.ndarray:
    """A smooth random field: random numbers on a coarse grid, and lines between them.

    Args:
        height: H.
        width: W.
        cell: of the grid, pixels.
        rng: of the numbers.

    Returns:
        ``[H, W]`` from -1 to 1.
    """
    coarse = rng.uniform(-1, 1, (int(height / cell) + 2, int(width / cell) + 2))
    rows, columns = np.indices((height, width)) / cell
    return sample(coarse, rows, columns)


def short_side(x: Pixels) -> int:
    """Pixels of the shorter side: lengths are shares of it."""
    return min(x.shape[:2])
