"""Feature rows, read piece by piece: a set may be larger than memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipfast.devices import to_device

Features = Any  # [N, D] of any float type: an array, a memory-mapped one, or a tensor
_PIECE_BYTES = {"cpu": 16 << 20, "cuda": 512 << 20}
_MOMENT_ROWS = 8192


@dataclass(frozen=True, eq=False)
class Part:
    """Some rows of one array.

    Attributes:
        features: ``[M, D]``.
        picked: which of its rows, in their order; None for all.
    """

    features: Features
    picked: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.features) if self.picked is None else len(self.picked)

    def read(self, start: int, stop: int) -> Tensor:
        """Rows ``[n, D]`` as they are stored."""
        where = slice(start, stop) if self.picked is None else self.picked[start:stop]
        if isinstance(self.features, Tensor):
            block = self.features[where if isinstance(where, slice) else torch.from_numpy(where)]
            return block.detach()
        # A memory-mapped file opened for reading would give a tensor that must not be written to.
        return torch.from_numpy(np.array(self.features[where]))


@dataclass(eq=False)
class Rows:
    """Rows of one or several arrays, end to end, as float32 on a device.

    Attributes:
        parts: where they are.
        device: where they are wanted.
        resident_bytes: a set whose float32 rows take no more is read once and kept there. A larger
            one is read again in each pass.
        name: of the set, for messages.
        centre: ``[D]`` float64, taken off each row; None until ``moments`` finds the mean. What is
            left has few digits in common, so float32 holds more of it.
    """

    parts: tuple[Part, ...]
    device: torch.device
    resident_bytes: int = 4 << 30
    name: str = "features"
    centre: Tensor | None = field(default=None, repr=False)
    _kept: Tensor | None = field(default=None, repr=False)
    _covariance: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        shapes = [tuple(part.features.shape) for part in self.parts]
        if any(len(shape) != 2 for shape in shapes) or len({shape[1] for shape in shapes}) != 1:
            raise ValueError(f"{self.name}: expected arrays [N, D] of one D, got {shapes}")
        if len(self) == 0 or self.dim == 0:
            raise ValueError(f"{self.name}: there are no features in arrays of shape {shapes}")

    def __len__(self) -> int:
        """N."""
        return sum(map(len, self.parts))

    @property
    def dim(self) -> int:
        """D."""
        return int(self.parts[0].features.shape[1])

    def pieces(self, columns: int = 0) -> Iterator[tuple[int, Tensor]]:
        """All rows in order, less ``centre``.

        Args:
            columns: how many numbers the caller computes per row; a piece is the smaller for it.

        Yields:
            The number of a piece's first row, and its rows ``[n, D]`` float32.
        """
        budget = _PIECE_BYTES.get(self.device.type, _PIECE_BYTES["cpu"])
        count = max(256, budget // (4 * (self.dim + 3 * columns)))
        if self._kept is None and 4 * len(self) * self.dim <= self.resident_bytes:
            kept = torch.empty(len(self), self.dim, device=self.device)
            for first, piece in self._read(count):
                kept[first : first + len(piece)] = piece
            self._kept = kept
        if self._kept is None:
            yield from self._read(count)
            return
        for first in range(0, len(self), count):
            yield first, self._kept[first : first + count]

    def drop(self) -> None:
        """Forget the copy in memory; a later pass reads the rows again."""
        self._kept = None

    def device_tensor(self, values: Any) -> Tensor:
        """Some numbers as float64 beside the rows."""
        return torch.as_tensor(values, dtype=torch.float64).to(self.device)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean ``[D]`` and covariance ``[D, D]`` of the rows, float64, on the device.

        From here on ``centre`` is the mean.

        Raises:
            ValueError: a value is not finite; names its row.
        """
        if self.centre is None:
            total = self.device_tensor(np.zeros(self.dim))
            for _, piece in self.pieces():
                total += piece.sum(0, dtype=torch.float64)
            if not bool(total.isfinite().all()):
                self._refuse_not_finite()
            self.centre = total / len(self)
            if self._kept is not None:
                self._kept -= self.centre.float()
        if self._covariance is None:
            gram = self.device_tensor(np.zeros((self.dim, self.dim)))
            for _, piece in self.pieces():
                for block in piece.split(_MOMENT_ROWS):
                    gram += block.T @ block
            self._covariance = gram / len(self)
        return self.centre, self._covariance

    def shift(self, weight: Tensor) -> Tensor:
        """What ``centre`` adds to a logit of weights ``[..., D]``: ``[...]`` float64."""
        if self.centre is None:
            return weight.new_zeros(weight.shape[:-1], dtype=torch.float64)
        return weight.double() @ self.centre.float().double().to(weight.device)

    def _read(self, count: int) -> Iterator[tuple[int, Tensor]]:
        first = 0
        for part in self.parts:
            for start in range(0, len(part), count):
                block = part.read(start, min(start + count, len(part)))
                rows = to_device(block, self.device).float()
                yield first + start, rows if self.centre is None else rows - self.centre.float()
            first += len(part)

    def _refuse_not_finite(self) -> None:
        for first, piece in self.pieces():
            bad = (~piece.isfinite().all(1)).nonzero()
            if len(bad):
                raise ValueError(
                    f"{self.name}: row {first + int(bad[0])} holds a value that is not finite; "
                    "float16 ends at 65,504, so extract the features again or leave the row out"
                )
        raise ValueError(f"{self.name}: the sum of the rows is not finite in float64")


def as_rows(
    features: Features | Rows,
    device: torch.device | str = "cpu",
    picked: np.ndarray | None = None,
    name: str = "features",
) -> Rows:
    """Rows of one array; what is ``Rows`` already stays so.

    Args:
        features: ``[N, D]``.
        device: where they are wanted.
        picked: which rows, by their places; None for all.
        name: of the set, for messages.
    """
    if isinstance(features, Rows):
        return features
    return Rows((Part(features, picked),), torch.device(device), name=name)
