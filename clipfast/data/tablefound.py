"""What a row of a table gives, before anybody asks whether it can be packed."""

import re
from dataclasses import dataclass


@dataclass
class Found:
    """One row.

    Attributes:
        where: file and line, and the row's number where a spreadsheet shows another one.
        image, caption: what stands in their columns; None where nothing does.
        image_column, caption_column: names of the columns.
        reason: why the row cannot be trusted; "" when it can.
    """

    where: str
    image: object = None
    caption: object = None
    image_column: str = ""
    caption_column: str = ""
    reason: str = ""

    def source(self, which: str = "") -> str:
        """What a report calls the row, or one of its captions."""
        image = self.image.strip() if isinstance(self.image, str) else ""
        return f"{self.where}{which} {image}".rstrip()


def where(name: str, line: int, row: int) -> str:
    """File and place of a row.

    Args:
        name: of the file.
        line: from 1, as an editor counts.
        row: from 1, as a spreadsheet counts.
    """
    return f"{name}:{line}" if line == row else f"{name}:{line} (row {row})"


def leads_to_url(text: str) -> bool:
    """Whether words stand before a URL: a sentence does that, and no path."""
    return re.search(r"\S\s+[A-Za-z][A-Za-z0-9+.-]*://", text) is not None
