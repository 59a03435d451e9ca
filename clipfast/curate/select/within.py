"""A selection that a step takes samples from."""

from __future__ import annotations

from dataclasses import dataclass

from clipfast.curate.select.combine import known_selection
from clipfast.data.selection import Selection, read_selection


@dataclass(frozen=True)
class Within:
    """A selection that samples are taken from.

    Attributes:
        path: of its file; None: all samples.
        digest: of its choices.
    """

    path: str | None = None
    digest: str = ""

    def selection(self) -> Selection | None:
        """The selection; None where there is none."""
        return None if self.path is None else known_selection(self.path, self.digest)


# All samples.
EVERYTHING = Within()


def within(path: str | None) -> Within:
    """A selection by the path of its file.

    Args:
        path: None: all samples.

    Raises:
        ValueError: it is no selection.
        OSError: it cannot be read.
    """
    return EVERYTHING if path is None else Within(path, read_selection(path).digest)
