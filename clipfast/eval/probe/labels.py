"""Labels as the solver takes them: checked, the classes without rows left out."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Targets:
    """What each row is.

    Attributes:
        labels: ``[N]`` int64, or ``[N, C]`` bool where a row may have several classes.
        classes: C.
    """

    labels: Tensor
    classes: int

    def __len__(self) -> int:
        """N."""
        return len(self.labels)

    @property
    def is_softmax(self) -> bool:
        """Whether a row has one class."""
        return self.labels.dim() == 1

    def take(self, picked: np.ndarray) -> Targets:
        """Those of some rows."""
        return Targets(self.labels[torch.from_numpy(picked)], self.classes)

    def counts(self) -> Tensor:
        """Rows of each class, ``[C]`` int64."""
        if self.is_softmax:
            return torch.bincount(self.labels, minlength=self.classes)
        return self.labels.sum(0)


def as_targets(labels: Any, classes: int | None, rows: int, name: str = "labels") -> Targets:
    """Check labels.

    Args:
        labels: ``[N]`` of any integer type, or ``[N, C]`` bool.
        classes: C; None takes it from the labels.
        rows: N, of the features.
        name: of the set, for messages.

    Raises:
        ValueError: shape, type, number or range do not fit; names the first row.
    """
    if isinstance(labels, Targets):
        labels, classes = labels.labels, labels.classes
    values = torch.as_tensor(np.asarray(labels))
    if len(values) != rows:
        raise ValueError(f"{name}: {len(values)} labels for {rows} rows of features")
    if values.dim() == 2 and values.dtype == torch.bool:
        if classes not in (None, values.shape[1]):
            raise ValueError(f"{name}: {values.shape[1]} columns for {classes} classes")
        return Targets(values, int(values.shape[1]))
    if values.dim() != 1 or values.dtype.is_floating_point or values.dtype == torch.bool:
        raise ValueError(
            f"{name}: expected [N] integers, or [N, C] bool where a row has several classes, got "
            f"{list(values.shape)} {values.dtype}"
        )
    values = values.long()
    count = int(values.max()) + 1 if classes is None else classes
    bad = ((values < 0) | (values >= count)).nonzero()
    if len(bad):
        row = int(bad[0])
        raise ValueError(
            f"{name}: row {row} has label {int(values[row])}, expected 0 to {count - 1}"
        )
    return Targets(values, count)


def present_classes(targets: Targets, names: Sequence[str] | None = None) -> list[int]:
    """The classes that have rows, and for several classes per row also rows without them.

    The others are named in a warning: nothing can be learned of them.

    Args:
        targets: of the rows to learn from.
        names: of the classes.

    Raises:
        ValueError: fewer than two classes are left to tell apart.
    """
    counts = targets.counts()
    usable = counts > 0 if targets.is_softmax else (counts > 0) & (counts < len(targets))
    missing = (~usable).nonzero()[:, 0].tolist()
    told = ", ".join(str(c) if names is None else f"{c} ({names[c]})" for c in missing[:20])
    told += f" and {len(missing) - 20} more" if len(missing) > 20 else ""
    if int(usable.sum()) < (2 if targets.is_softmax else 1):
        raise ValueError(
            f"a classifier needs rows of two classes at least; without them: {told}. Are the "
            "labels those of this split?"
        )
    if missing:
        what = "no rows" if targets.is_softmax else "no rows, or no rows without them,"
        warnings.warn(
            f"{len(missing)} of {targets.classes} classes have {what} to learn from, and are never "
            f"predicted: {told}",
            stacklevel=4,
        )
    return usable.nonzero()[:, 0].tolist()
