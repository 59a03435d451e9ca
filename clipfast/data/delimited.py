r"""Rows of a table whose cells stand between separators, with every doubt about them named.

A line break that nobody quoted cuts a row in two, and a quote that nobody closed swallows the rows
behind it. Both leave a row that reads well and holds a wrong caption. So rows are judged with their
neighbours: what does not begin like a row of this table spoils the row that it was cut from.
"""

import io
import re
from collections.abc import Iterator

from clipfast.data.columns import both_columns, plain_names
from clipfast.data.kinds import image_extensions
from clipfast.data.packitem import TableOptions
from clipfast.data.separator import name_of, separator_of
from clipfast.data.tablefound import Found, leads_to_url, where
from clipfast.data.tablerows import Lines, Row, Rows
from clipfast.storage import storage_of
from clipfast.storage.paths import join, split

_LINE_ENDS = {"\n": "LF", "\r": "CR"}
# Longer than any path.
_PATH = 4096
# Kinds of names that are remembered.
_SHAPES = 10_000


def read_delimited(
    path: str, root: str, text: io.TextIOWrapper, usual: str, options: TableOptions
) -> Iterator[Found]:
    """Rows in order, below the names of the columns; empty lines are none.

    Args:
        path: of the table, for messages.
        root: folder that its relative paths start from.
        text: the table.
        usual: separator that the file's name tells; another one that fits the first row is taken.
        options: separator, quote, names of columns.

    Raises:
        ValueError: no separator, or several, give the first row an image's and a caption's column.
    """
    lines = Lines(text)
    quote = options.quote_character
    separator = separator_of(path, lines, usual, options)
    rows = Rows(lines, separator, quote)
    header = rows.read()
    if header is None:
        return
    if header.reason:
        raise ValueError(f"{path!r}, line {header.line}, names of the columns: {header.reason}")
    yield from _Table(path, root, rows, header, separator, quote, options).found()


class _Table:
    def __init__(
        self,
        path: str,
        root: str,
        rows: Rows,
        header: Row,
        separator: str,
        quote: str,
        options: TableOptions,
    ) -> None:
        self._name, self._root, self._rows = split(path)[1], root, rows
        self._separator, self._quote, self._end = separator, quote, header.end
        self._names = header.cells
        self._plain_names = sorted(plain_names(header.cells))
        self._image, self._caption = both_columns(path, header.cells, options)
        self._first = self._caption == 0
        self._last = self._caption == len(header.cells) - 1
        # How images are called that have no extension of one.
        self._shapes: set[str] = set()
        self._any_image = False

    def found(self) -> Iterator[Found]:
        # A row whose end is not known yet, and the blank ones behind it.
        waiting: list[Found] = []
        cut = ends = ""
        # Lines on which a quote closes that cannot have opened where it seems to.
        closing: set[int] = set()
        while row := self._rows.read():
            if row.lines > 1 and not self._is_one(row):
                closing.add(row.line + row.lines - 1)
                row = self._rows.first_line()
            found = self._found(row)
            found.reason = found.reason or cut or ends
            if row.line in closing and row.lines == 1:
                found.reason = found.reason or self._closes()
            ends = ""
            if row.end and self._end and row.end != self._end:
                ends = self._other_end(row.end)
                found.reason = found.reason or ends
            if self._is_blank(row, row.cells):
                waiting.append(found)
                continue
            cut = ""
            if self._is_odd(row):
                if waiting and self._last:
                    why = self._cut(f"line {row.line} is its rest")
                    waiting[0].reason = waiting[0].reason or why
                if self._first:
                    cut = self._cut(f"line {row.line} is its beginning")
            yield from waiting
            waiting = [found]
        yield from waiting

    def _found(self, row: Row) -> Found:
        cells = row.cells
        image, caption = (
            cells[i] if i < len(cells) else None for i in (self._image, self._caption)
        )
        reason = row.reason
        if not reason and self._repeats_names(cells):
            reason = "row repeats the names of the columns"
        if not reason and len(cells) != len(self._names):
            reason = (
                f"row has {len(cells)} columns, and the first row {len(self._names)}: a "
                f"{name_of(self._separator)} or a line end inside a cell needs quotes around the "
                "cell"
            )
        return Found(
            where(self._name, row.line, self._rows.count),
            image.replace("\ufeff", "") if image else image,
            caption,
            self._names[self._image],
            self._names[self._caption],
            reason,
        )

    def _repeats_names(self, cells: list[str]) -> bool:
        first = cells[0].strip("\ufeff \t").lower()
        return first in self._plain_names and sorted(plain_names(cells)) == self._plain_names

    def _is_one(self, row: Row) -> bool:
        """Whether a row over several lines can be one: no line in its cells begins like a row."""
        if row.reason or len(row.cells) != len(self._names):
            return False
        own = _shape(row.cells[self._image].strip())
        for place, cell in enumerate(row.cells):
            first, *others = re.split("\r\n|\r|\n", cell)
            if not others:
                continue
            if place == self._image:
                return False
            # On the first line, columns are counted from this cell on.
            parts = [(first, self._image - place), *((part, self._image) for part in others)]
            for part, at in parts:
                cells = part.split(self._separator)
                if 0 <= at < len(cells) and self._is_image(cells[at].strip(" \t\"'"), own):
                    return False
        return True

    def _is_blank(self, row: Row, cells: list[str]) -> bool:
        """Whether a row has nothing in these cells; quotes around too few are a caption's rest."""
        rest = row.quoted and len(row.cells) != len(self._names)
        return not row.reason and not rest and not any(cell.strip() for cell in cells)

    def _is_odd(self, row: Row) -> bool:
        """Whether a row may be the rest of another: where the image should be, there is none."""
        cells = row.cells
        if self._repeats_names(cells):
            return False
        if len(cells) <= self._image:
            return True
        image = cells[self._image].strip("\ufeff \t")
        if self._is_blank(row, cells[self._image :]):
            return False
        # The first row has nothing before it that it could be cut from.
        if not self._is_image(image) and self._any_image:
            return True
        self._any_image = True
        if _extension(image) not in image_extensions() and len(self._shapes) < _SHAPES:
            self._shapes.add(_shape(image))
        return False

    def _is_image(self, text: str, own: str = "") -> bool:
        """Whether `text` names an image: by its extension, by its like, or because it is there."""
        if leads_to_url(text):
            return False
        if _extension(text) in image_extensions() or "://" in text:
            return True
        if not text or len(text) > _PATH:
            return False
        shape = _shape(text)
        if shape == own or shape in self._shapes:
            return True
        path = join(self._root, text)
        return storage_of(path).is_file(path)

    def _closes(self) -> str:
        return (
            f"row has a {self._quote} that may close a cell of an earlier row; double quotes "
            "inside quoted cells, or give --quote none where quotes are plain letters"
        )

    def _other_end(self, end: str) -> str:
        return (
            f"row ends in {_LINE_ENDS[end]} where the first row ends in {_LINE_ENDS[self._end]}: "
            "a caption was cut, or tables were joined; a line end inside a cell needs quotes"
        )

    def _cut(self, what: str) -> str:
        return f"row may be cut, and {what}: a line end inside a cell needs quotes around the cell"


def _extension(text: str) -> str:
    return text[text.rfind(".") :].lower()


def _shape(text: str) -> str:
    """Equal for names that are counted or hashed alike."""
    return re.sub(r"\d+", "0", re.sub(r"[0-9a-fA-F]{16,}", "h", text))
