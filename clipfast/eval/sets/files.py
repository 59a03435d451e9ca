"""Images that are files of their own."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ImageFiles:
    """Gives the bytes of the i-th of some files; reads them when asked.

    Attributes:
        paths: of the images.
    """

    paths: Sequence[str]

    def __call__(self, i: int) -> bytes:
        try:
            return Path(self.paths[i]).read_bytes()
        except OSError as error:
            raise ValueError(
                f"cannot read image {self.paths[i]!r}: {error.strerror}; it was there when the "
                "data set was opened"
            ) from None
