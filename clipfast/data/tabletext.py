"""Read a table's file as lines of text, in whatever encoding it was saved."""

import codecs
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager

from clipfast.storage import storage_of

_HEAD = 64
# The longer marks first: the mark of UTF-16 begins that of UTF-32.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Without a mark: the first two letters of a header in ASCII, and where its zeros stand.
_ZEROS = (
    (re.compile(rb"[^\0]\0\0\0[^\0]\0\0\0", re.DOTALL), "utf-32-le"),
    (re.compile(rb"\0\0\0[^\0]\0\0\0[^\0]", re.DOTALL), "utf-32-be"),
    (re.compile(rb"[^\0]\0[^\0]\0", re.DOTALL), "utf-16-le"),
    (re.compile(rb"\0[^\0]\0[^\0]", re.DOTALL), "utf-16-be"),
)
# What people name .csv and is none: its first bytes, what it is, what to do.
_OTHERS = (
    (b"PK\x03\x04", "a zip archive or an Excel workbook", "save it as CSV UTF-8"),
    (b"\xd0\xcf\x11\xe0", "an Excel workbook", "save it as CSV UTF-8"),
    (b"\x1f\x8b", "compressed (gzip)", "decompress it"),
    (b"BZh", "compressed (bzip2)", "decompress it"),
    (b"\x28\xb5\x2f\xfd", "compressed (zstd)", "decompress it"),
    (b"\xfd7zXZ", "compressed (xz)", "decompress it"),
    (b"PAR1", "a Parquet file", "write its columns as .csv or .jsonl"),
    (b"<!doctype html", "a web page", "download the file itself"),
    (b"<html", "a web page", "download the file itself"),
    (b"version https://git-lfs", "a pointer of Git LFS", "fetch the file: git lfs pull"),
)

# Stands for bytes that are no text in the table's encoding.
_BAD = "\udcff"
_BAD_HANDLER = "clipfast.table"


def _mark_bad(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return _BAD, error.end


codecs.register_error(_BAD_HANDLER, _mark_bad)


def encoding_of(head: bytes) -> str:
    """Encoding that the first bytes of a table tell; UTF-8 where they tell none."""
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding
    return next((encoding for zeros, encoding in _ZEROS if zeros.match(head)), "utf-8")


@contextmanager
def open_lines(path: str, encoding: str | None = None) -> Iterator[io.TextIOWrapper]:
    r"""Open a table; the lines keep their ends, which are ``\n``, ``\r\n`` or ``\r``.

    What cannot be decoded becomes halves of surrogate pairs; in UTF-8 those that `os.fsencode`
    turns back, since paths may hold any bytes.

    Args:
        path: of the table.
        encoding: what Python calls it; default what the first bytes tell.

    Raises:
        ValueError: an unknown encoding, or a file that is no text.
    """
    with storage_of(path).open(path) as reader:
        head = reader.read_at(0, _HEAD)
        for magic, what, remedy in _OTHERS:
            if head.startswith(magic) or head.lower().startswith(magic):
                raise ValueError(f"table {path!r} is {what}; {remedy} first")
        encoding = encoding or encoding_of(head)
        if encoding == "utf-8" and head.count(0) > len(head) // 4:
            raise ValueError(
                f"table {path!r} begins with many NUL bytes; it is no text, or its encoding must "
                "be named, such as --encoding utf-16-le"
            )
        try:
            name = codecs.lookup(encoding).name
            text = io.TextIOWrapper(
                reader.stream(),
                encoding,
                "surrogateescape" if name.startswith("utf-8") else _BAD_HANDLER,
                newline="",
            )
        except LookupError:
            raise ValueError(
                f"--encoding {encoding!r} is no encoding that Python reads as text; give one such "
                "as utf-8, utf-16, cp1252 or gbk"
            ) from None
        yield text


def is_text(text: str) -> bool:
    """Whether all of `text` could be decoded."""
    return re.search("[\ud800-\udfff]", text) is None
