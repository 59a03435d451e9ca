"""What a layout on disk tells of a data set; its words may come from elsewhere."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass(frozen=True, eq=False)
class FoundSet:
    """Images and labels as they lie on disk.

    Attributes:
        name: that the layout itself tells, such as a folder's.
        labels: as those of ``LabelledSet``; without names they are numbers that others gave.
        encoded: gives the i-th image, as a file.
        label_names: what the layout calls the labels, such as the names of folders; None where
            labels are numbers.
        attributes: further columns.
        beside: folder that may hold ``classnames.txt`` and
            ``zeroshot_classification_templates.txt``.
    """

    name: str
    labels: np.ndarray
    encoded: Callable[[int], bytes]
    label_names: tuple[str, ...] | None = None
    attributes: Mapping[str, np.ndarray] = field(default_factory=dict)
    beside: Path | None = None
