"""Pairs of image and caption from the rows of a table: each pair is right, or its row is named."""

from clipfast.data.captionlist import kind_of, texts_of
from clipfast.data.delimited import read_delimited
from clipfast.data.jsonlines import read_json_lines
from clipfast.data.kinds import TABLES
from clipfast.data.packitem import Item, Listing, TableOptions
from clipfast.data.tablefound import Found, leads_to_url
from clipfast.data.tablerows import NUL
from clipfast.data.tabletext import is_text, open_lines
from clipfast.storage.paths import join, scheme_of, split, split_extension

_WEB = ("http", "https", "ftp")


def list_table(path: str, images: str | None, options: TableOptions) -> Listing:
    """List the rows of a table.

    Args:
        path: of a ``.csv``, ``.tsv`` or ``.jsonl`` file.
        images: folder that relative paths start from; default the table's own.
        options: how the table is read.

    Raises:
        ValueError: the table has no rows, or no columns that hold image and caption.
    """
    root = images or split(path)[0]
    separator = TABLES[split_extension(path)[1].lower()]
    if not separator and (options.separator or options.quote):
        raise ValueError(f"{path!r} is JSON lines; --separator and --quote belong to .csv and .tsv")
    listing = Listing()
    with open_lines(path, options.encoding) as text:
        # Lines of JSON are judged before they are read: what is no text behind that was escaped.
        encoding = text.encoding.upper().removesuffix("-SIG") if separator else ""
        rows = (
            read_delimited(path, root, text, separator, options)
            if separator
            else read_json_lines(path, text, options)
        )
        for found in rows:
            _take(listing, root, found, options, encoding)
    if not listing.total:
        raise ValueError(f"{path!r} holds no row below the names of its columns")
    return listing


def _take(listing: Listing, root: str, found: Found, options: TableOptions, encoding: str) -> None:
    try:
        image = _image(found, encoding)
        texts = texts_of(found.caption, options.caption_lists)
    except ValueError as error:
        listing.total += 1
        listing.rejected.append((found.source(), str(error)))
        return
    for number, text in enumerate(texts, 1):
        listing.total += 1
        source = found.source(f"[{number}]" if len(texts) > 1 else "")
        try:
            data = _caption(found, text, encoding)
        except ValueError as error:
            listing.rejected.append((source, str(error)))
        else:
            listing.items.append(Item(source, join(root, image), data))


def _image(found: Found, encoding: str) -> str:
    """The image's path, or the reason why there is none."""
    if found.reason:
        raise ValueError(found.reason)
    image = found.image
    if image is None or (isinstance(image, str) and not image.strip()):
        raise ValueError(f"row has no {found.image_column!r}")
    if not isinstance(image, str):
        raise ValueError(f"{found.image_column!r} is {kind_of(image)}, not a path")
    if "\0" in image:
        raise ValueError(NUL)
    if scheme_of(image.strip()) in _WEB:
        raise ValueError("image is a URL; download it first, and give its path")
    if leads_to_url(image):
        raise ValueError(f"{found.image_column!r} has words before a URL, so it is no path")
    # In a table of text, paths may hold any bytes.
    if not encoding and not is_text(image):
        raise ValueError(_half(found.image_column))
    return image.strip()


def _caption(found: Found, text: object, encoding: str) -> bytes:
    """The caption's bytes, or the reason why there are none."""
    if text is None:
        raise ValueError(f"row has no {found.caption_column!r}")
    if not isinstance(text, str):
        raise ValueError(f"caption is {kind_of(text)}, not a text")
    if "\0" in text:
        raise ValueError(NUL)
    if not is_text(text) and not encoding:
        raise ValueError(_half(found.caption_column))
    if not is_text(text):
        raise ValueError(
            f"caption is not {encoding}; name the encoding of the table, such as --encoding cp1252"
        )
    return text.encode()


def _half(column: str) -> str:
    return (
        f"{column!r} holds half of a surrogate pair, written as \\ud800 to \\udfff; write the "
        "whole character"
    )
