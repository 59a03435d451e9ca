"""The table of what a command left out, and why: tab-separated, whole or not there."""

from collections.abc import Iterable

from clipfast.data.storage import storage_of

# Beside the first shard of an indexing run.
INDEX_REPORT = "index_report.tsv"


def clean_field(text: str) -> str:
    """`text` as one field of a report: no tab, no line break, always encodable."""
    return " ".join(text.split()).encode("utf-8", "backslashreplace").decode()


def read_rows(path: str, firsts: Iterable[str] | None = None) -> list[str]:
    """Rows of an earlier report, as lines, whose first field is one of `firsts`; None: all."""
    keep = None if firsts is None else {clean_field(first) for first in firsts}
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
        self.line("\t".join(map(clean_field, fields)) + "\n")

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
