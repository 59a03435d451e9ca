"""What is to be packed, and what was left out while listing it."""

from dataclasses import dataclass, field
from typing import Literal

_WORDS = {"separator": {"tab": "\t", "\\t": "\t"}, "quote": {"none": ""}}

CaptionLists = Literal["report", "first", "each"]


@dataclass(frozen=True)
class TableOptions:
    """How a table is read. None: what the table itself tells.

    Attributes:
        image_column, caption_column: names of columns.
        separator: one character, or ``tab``.
        quote: one character around cells, or ``none`` where quotes are plain letters.
        encoding: what Python calls it.
        caption_lists: a row with several captions is reported, packed with its first one, or
            packed once with each.
    """

    image_column: str | None = None
    caption_column: str | None = None
    separator: str | None = None
    quote: str | None = None
    encoding: str | None = None
    caption_lists: CaptionLists = "report"

    def __post_init__(self) -> None:
        for name, text, word in (
            ("separator", self.separator, "tab"),
            ("quote", self.quote, "none"),
        ):
            character = text is not None and len(text) == 1 and text not in "\r\n"
            if text is not None and not character and text not in _WORDS[name]:
                raise ValueError(f"--{name} {text!r}: expected one character, or {word}")

    @property
    def separator_character(self) -> str:
        """Between cells; "" where nobody said."""
        return _WORDS["separator"].get(self.separator or "", self.separator or "")

    @property
    def quote_character(self) -> str:
        """Around cells; "" where quotes are plain letters."""
        return _WORDS["quote"].get(self.quote or '"', self.quote or '"')


@dataclass(frozen=True)
class Item:
    """One image and its caption, not read yet.

    Attributes:
        source: what a report calls it: a table's row, or the image's path in its folder.
        image: path of the image.
        caption: the caption's bytes; None when they are in `caption_file`.
        caption_file: path of the caption.
    """

    source: str
    image: str
    caption: bytes | None = None
    caption_file: str = ""


@dataclass
class Listing:
    """All that a source holds. Every row, or every file, is in one of the lists.

    Attributes:
        items: to pack, in a fixed order.
        rejected: (source, reason) of rows, images and captions that cannot be packed.
        notes: (source, what it is) of what is no sample: files of other kinds, folders left alone.
        total: rows of a table, or images of a folder; a row with n captions that are all packed
            counts n times.
        unit: what `total` counts.
        rest: what a folder holds besides, for the summary.
        hint: what to give instead where nothing could be packed.
    """

    items: list[Item] = field(default_factory=list)
    rejected: list[tuple[str, str]] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    total: int = 0
    unit: str = "rows"
    rest: str = ""
    hint: str = ""

    def account(self, packed: int) -> str:
        """Where everything went, in one line.

        Args:
            packed: samples in the shards.
        """
        told = f"{self.unit}: {self.total:,} = {packed:,} packed + {self.total - packed:,} reported"
        return told + self.rest
