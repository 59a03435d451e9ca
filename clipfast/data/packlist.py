"""List what `clipfast.data.pack` is to pack: rows of a table, or images beside their captions."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from clipfast.data.fields import FIELDS
from clipfast.data.storage import storage_of
from clipfast.data.storage.paths import join, relative, split, split_extension

IMAGE_COLUMNS = ("file", "filepath", "image", "path")
CAPTION_COLUMNS = ("caption", "title", "text")
# Shards hold the first of these; the others are encoded anew.
IMAGE_FILES = (*(f".{extension}" for extension in FIELDS.images), ".gif", ".bmp", ".tif", ".tiff")
CAPTION_FILE = f".{FIELDS.caption}"
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_JSON_LINES = (".jsonl", ".ndjson")


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


def list_items(
    source: str,
    images: str | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
) -> tuple[list[Item], list[tuple[str, str]]]:
    """List the items of a table or of a folder tree.

    Args:
        source: a ``.csv``, ``.tsv``, ``.jsonl`` file, or a folder, searched with its subfolders.
        images: folder that a table's relative paths start from; default the table's own.
        image_column, caption_column: column names; default the first of `IMAGE_COLUMNS` and
            `CAPTION_COLUMNS` that the table has, in any case.

    Returns:
        The items in a fixed order, and (source, reason) of what cannot be packed.

    Raises:
        FileNotFoundError: no such source.
        ValueError: a file of another kind, a table without the columns, nothing to pack.
    """
    if storage_of(source).is_folder(source):
        if images or image_column or caption_column:
            raise ValueError(
                f"{source!r} is a folder; --images, --image-column and --caption-column belong "
                "to a table: give the .csv, .tsv or .jsonl file as the source"
            )
        return _list_folder(source)
    if not storage_of(source).exists(source):
        raise FileNotFoundError(f"source {source!r} does not exist; give a table or a folder")
    extension = split_extension(source)[1].lower()
    if extension in _JSON_LINES:
        rows = _json_rows(source)
    elif extension in _DELIMITERS:
        rows = _delimited_rows(source, _DELIMITERS[extension])
    else:
        raise ValueError(
            f"source {source!r} is neither a folder nor a .csv, .tsv or .jsonl table; rename the "
            "table by what it holds"
        )
    root = images or split(source)[0]
    if images and not storage_of(images).is_folder(images):
        raise FileNotFoundError(f"--images {images!r} is no folder")
    return _list_table(source, root, rows, image_column, caption_column)


# Rows as (line number, columns or None, reason when None).
_Row = tuple[int, dict[str, object] | None, str]


def _json_rows(path: str) -> Iterator[_Row]:
    with storage_of(path).open(path) as reader:
        for number, line in enumerate(reader.stream(), 1):
            if line.strip():
                yield number, *_json_row(line)


def _json_row(line: bytes) -> tuple[dict[str, object] | None, str]:
    """Columns, or None and the reason."""
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return None, "row is not UTF-8"
    except json.JSONDecodeError as error:
        return None, f"row is not JSON: {error}"
    if isinstance(row, dict):
        return row, ""
    return None, f"row is a JSON {type(row).__name__}, not an object"


def _delimited_rows(path: str, delimiter: str) -> Iterator[_Row]:
    # Captions scraped from pages pass csv's default of 128 KiB.
    csv.field_size_limit(1 << 24)
    with storage_of(path).open(path) as reader:
        text = io.TextIOWrapper(reader.stream(), "utf-8-sig", "surrogateescape", newline="")
        rows = csv.DictReader(text, delimiter=delimiter)
        try:
            for row in rows:
                yield rows.line_num, row, ""
        except csv.Error as error:
            raise ValueError(f"{path!r}, line {rows.line_num}: {error}") from None


def _column(path: str, names: Sequence[str], wanted: str | None, usual: Sequence[str]) -> str:
    """The column to use: the one asked for, or the first of the usual ones."""
    kind = "image" if usual is IMAGE_COLUMNS else "caption"
    if wanted is not None:
        if wanted in names:
            return wanted
        raise ValueError(
            f"{path!r} has no column {wanted!r} for the {kind}; its columns: {', '.join(names)}"
        )
    by_lower = {name.strip().lower(): name for name in reversed(names)}
    for name in usual:
        if name in by_lower:
            return by_lower[name]
    raise ValueError(
        f"{path!r} has none of the columns {', '.join(usual)} for the {kind}; its columns: "
        f"{', '.join(map(repr, names))}. Name one with --{kind}-column "
        "(the first row must hold names)"
    )


def _list_table(
    path: str,
    root: str,
    rows: Iterator[_Row],
    image_column: str | None,
    caption_column: str | None,
) -> tuple[list[Item], list[tuple[str, str]]]:
    items: list[Item] = []
    rejected: list[tuple[str, str]] = []
    columns: tuple[str, str] | None = None
    for number, row, reason in rows:
        where = f"{split(path)[1]}:{number}"
        if row is None:
            rejected.append((where, reason))
            continue
        if columns is None:
            names = [name for name in row if isinstance(name, str)]
            columns = (
                _column(path, names, image_column, IMAGE_COLUMNS),
                _column(path, names, caption_column, CAPTION_COLUMNS),
            )
        image, caption = row.get(columns[0]), row.get(columns[1])
        if not isinstance(image, str) or not image.strip():
            rejected.append((where, f"row has no {columns[0]!r}"))
        elif not isinstance(caption, str):
            rejected.append((f"{where} {image}", f"row has no {columns[1]!r}"))
        else:
            data = caption.encode("utf-8", "surrogateescape")
            items.append(Item(f"{where} {image}", join(root, image.strip()), data))
    if not items:
        why = f"; first reason: {rejected[0][1]} ({rejected[0][0]})" if rejected else ""
        raise ValueError(f"{path!r} holds no row with an image and a caption{why}")
    return items, rejected


def _list_folder(folder: str) -> tuple[list[Item], list[tuple[str, str]]]:
    items: list[Item] = []
    rejected: list[tuple[str, str]] = []
    tables: list[str] = []
    for at, files in storage_of(folder).walk(folder):
        present = set(files)
        stems = set()
        for name in files:
            stem, extension = split_extension(name)
            path = join(at, name)
            if extension.lower() in (*_DELIMITERS, *_JSON_LINES):
                tables.append(path)
            if name.startswith(".") or extension.lower() not in IMAGE_FILES:
                continue
            stems.add(stem)
            source = relative(path, folder)
            text = next(
                (stem + e for e in (CAPTION_FILE, CAPTION_FILE.upper()) if stem + e in present),
                None,
            )
            if text is None:
                rejected.append(
                    (source, f"image has no caption file {stem}{CAPTION_FILE} beside it")
                )
            else:
                items.append(Item(source, path, None, join(at, text)))
        for name in sorted(present):
            stem, extension = split_extension(name)
            if extension.lower() == CAPTION_FILE and stem not in stems and not name.startswith("."):
                source = relative(join(at, name), folder)
                rejected.append((source, "caption has no image beside it"))
    if not items:
        hint = f"; to use the table there, give {tables[0]!r} as the source" if tables else ""
        raise ValueError(
            f"folder {folder!r} holds no image ({', '.join(IMAGE_FILES)}) with a {CAPTION_FILE} of "
            f"the same name beside it{hint}"
        )
    return items, rejected
