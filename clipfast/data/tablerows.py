r"""Cut the text of a table into rows, so that no row takes another's lines.

Cells are those of RFC 4180, which spreadsheets and Python's csv write: a cell in quotes may hold
separators, line ends, and quotes that are doubled. A quote that breaks this rule costs its own line
alone: the next line is a row again.
"""

import csv
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# Captions scraped from pages pass csv's default of 128 KiB.
_LONGEST = 1 << 24
NUL = "row holds a NUL character"


class Lines:
    """Lines of a text, which can be given back.

    Args:
        text: the lines, each with its end.
    """

    def __init__(self, text: Iterable[str]) -> None:
        self._text = iter(text)
        self._ahead: deque[str] = deque()
        # Lines since the last `keep`, in order.
        self.taken: list[str] = []
        # Lines before those.
        self.passed = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._ahead.popleft() if self._ahead else next(self._text)
        self.taken.append(line)
        return line

    def keep(self, count: int) -> None:
        """Be done with the first `count` of the lines taken, and give the others back."""
        self._ahead.extendleft(reversed(self.taken[count:]))
        self.passed += min(count, len(self.taken))
        self.taken = []


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        line: number of its first line in the file, from 1.
        lines: how many it has.
        cells: as far as they can be told.
        end: what its last line ends with: ``\\n``, ``\\r``, or "" at the end of the file.
        reason: why the cells cannot be trusted; "" when they can.
        quoted: it has quotes.
    """

    line: int
    lines: int
    cells: list[str]
    end: str = ""
    reason: str = ""
    quoted: bool = False


class Rows:
    """Reads rows one by one.

    Args:
        lines: of the table, from the first row on.
        separator: one character, between cells.
        quote: one character, around cells; "" where quotes are plain letters.
    """

    def __init__(self, lines: Lines, separator: str, quote: str = '"') -> None:
        csv.field_size_limit(_LONGEST)
        self._lines, self._separator, self._quote = lines, separator, quote
        if quote:
            self._reader = csv.reader(lines, delimiter=separator, quotechar=quote, strict=True)
        else:
            self._reader = csv.reader(
                lines, delimiter=separator, quotechar=None, quoting=csv.QUOTE_NONE, strict=True
            )
        # Of the lines taken, how many the last row has; the others are rows of their own.
        self._used = 0
        # Rows so far, empty lines among them: what a spreadsheet counts.
        self.count = 0

    def read(self) -> Row | None:
        """The next row that is not empty; None after the last."""
        while True:
            self._lines.keep(self._used)
            self.count += 1
            try:
                cells = next(self._reader)
            except StopIteration:
                return None
            except csv.Error as error:
                return self._alone(self._why(str(error)))
            self._used = len(self._lines.taken)
            if cells:
                break
        lines = self._lines.taken
        return Row(
            self._lines.passed + 1,
            len(lines),
            cells,
            _end(lines[-1]),
            self._other_rule(cells),
            bool(self._quote) and self._quote in lines[0],
        )

    def first_line(self) -> Row:
        """Take the first line of the row that was read as a row of its own, and read on behind."""
        return self._alone(self._why(""))

    def plain(self, line: str) -> list[str]:
        """Cells of a line whose quotes mean nothing."""
        cells = line.rstrip("\r\n").split(self._separator)
        return [cell.strip(" \t" + self._quote) for cell in cells] if self._quote else cells

    def _alone(self, reason: str) -> Row:
        line = self._lines.taken[0]
        self._used = 1
        return Row(self._lines.passed + 1, 1, self.plain(line), _end(line), reason)

    def _why(self, error: str) -> str:
        if "NUL" in error:
            return NUL
        if "field limit" in error:
            return f"row has a cell of more than {_LONGEST:,} characters"
        return (
            f"row has a {self._quote} that opens a cell and does not close it: double it inside "
            f"quotes, or give --quote none where quotes are plain letters"
        )

    def _other_rule(self, cells: list[str]) -> str:
        """Why cells that were read are probably not what their writer meant; "" mostly."""
        if len(self._lines.taken) > 1:
            return ""
        line = self._lines.taken[0].rstrip("\r\n")
        if line.endswith("\\"):
            return "row ends in a \\: a line end inside a cell needs quotes around the cell"
        if not self._quote or (self._quote not in line and "''" not in line):
            return ""
        for cell, quoted in self._with_quotes(line, cells):
            # Who escapes by backslashes has not ended the cell here.
            if cell.endswith("\\") if quoted else f"\\{self._quote}" in cell:
                return f"row has a \\{self._quote}: double a quote that belongs to the caption"
            if quoted:
                continue
            if cell[:1] in (" ", "\t") and cell.lstrip(" \t").startswith(self._quote):
                return f"row has a space before the {self._quote} of a cell; remove the space"
            if self._only_closes(line, cell):
                return f"row has a cell that ends in a {self._quote} that nothing opens"
            if _in_single_quotes(cell):
                return 'row has a cell in single quotes; say so with --quote "\'"'
        return ""

    def _with_quotes(self, line: str, cells: list[str]) -> Iterator[tuple[str, bool]]:
        """The cells of a line, and whether quotes stand around each."""
        at = 0
        for cell in cells:
            quoted = line.startswith(self._quote, at)
            yield cell, quoted
            # Inside quotes each quote stands twice.
            at += len(cell) + 1 + (2 + cell.count(self._quote) if quoted else 0)

    def _only_closes(self, line: str, cell: str) -> bool:
        """Whether a cell without quotes ends in one by mistake: 12" may be inches."""
        if not cell.endswith(self._quote) or cell.count(self._quote) % 2 == 0:
            return False
        quotes_others = f"{self._separator}{line}".count(self._separator + self._quote) > 0
        return quotes_others or not cell[:-1].rstrip()[-1:].isdigit()


def _in_single_quotes(cell: str) -> bool:
    inside = cell[1:-1]
    around = len(cell) > 2 and cell[0] == cell[-1] == "'"
    return around and "''" in inside and "'" not in inside.replace("''", "")


def _end(line: str) -> str:
    return "\r" if line.endswith("\r") else "\n" if line.endswith("\n") else ""
