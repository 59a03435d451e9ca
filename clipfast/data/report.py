"""The table of what a command left out, and why: tab-separated, whole or not there."""

import re
import unicodedata
from collections.abc import Iterable

from clipfast.storage import storage_of

# Beside the first shard of an indexing run.
INDEX_REPORT = "index_report.tsv"
# Among the shards that were packed.
PACK_REPORT = "pack_report.tsv"


# What holds several people of one emoji together, and separates letters of some scripts.
_JOINERS = "\u200c\u200d"
# Control and format characters, halves of surrogate pairs, separators of lines and paragraphs.
_UNPRINTABLE = ("Cc", "Cf", "Cs", "Zl", "Zp")
# Most text has none, and is done after one look.
_SUSPECT = re.compile(r"[^ -~]")


def printable(text: str, keep: str = "") -> str:
    """`text` without what a terminal would obey, or a table would break at.

    Escape sequences, control characters, line breaks and marks that turn the direction of writing
    come out as Python writes them, such as ``\\x1b``. Letters of every script stay.

    Args:
        text: from outside: a name, a caption, a message that quotes one.
        keep: characters that stay although they are such, such as a line break.
    """

    def escape(found: re.Match[str]) -> str:
        char = found.group()
        if char in keep or char in _JOINERS or unicodedata.category(char) not in _UNPRINTABLE:
            return char
        return char.encode("unicode_escape").decode()

    return _SUSPECT.sub(escape, text)


def read_rows(path: str, firsts: Iterable[str] | None = None) -> list[str]:
    """Rows of an earlier report, as lines, whose first field is one of `firsts`; None: all."""
    keep = None if firsts is None else {printable(first) for first in firsts}
    try:
        text = storage_of(path).read(path).decode("utf-8", "replace")
    except OSError:
        return []
    lines = text.splitlines(keepends=True)
    return [line for line in lines if keep is None or line.split("\t", 1)[0] in keep]


class Report:
    """Writes a report. It appears when the ``with`` block ends, or not at all if that fails.

    Args:
        path: of the report.
        header: names of the columns.
    """

    def __init__(self, path: str, *header: str) -> None:
        self._writer = storage_of(path).create(path)
        self.row(*header)

    def row(self, *fields: str) -> None:
        """Append a row."""
        self.line("\t".join(map(printable, fields)) + "\n")

    def line(self, text: str) -> None:
        """Append a row that `read_rows` gave."""
        self._writer.write(text.encode("utf-8"))

    def __enter__(self) -> "Report":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._writer.commit()
        finally:
            self._writer.abort()
