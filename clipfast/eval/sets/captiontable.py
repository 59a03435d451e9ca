"""Images with captions from tables: several rows or several columns per image."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from clipfast.data.columns import CAPTION_COLUMNS
from clipfast.data.tabletext import open_lines
from clipfast.eval.sets.captioned import Captioned, captioned_set
from clipfast.eval.sets.kinds import CaptionedSet
from clipfast.eval.sets.labelledtable import IMAGE_NAMES
from clipfast.eval.sets.tables import Table, read_table

_CAPTIONS = (*CAPTION_COLUMNS, "captions", "comment", "sentence", "sentences", "raw")
_NUMBERED = re.compile(r"(?:caption|comment|sentence|text|title)[ _]?\d+")
# A caption of Flickr's own files: image, number, tab, caption.
_TOKEN = re.compile(r"(.+?)#\d+\t(.+)")
_HEADER = "image,caption"


def read_caption_table(path: Path, name: str, split: str, root: Path | None) -> CaptionedSet:
    """Images and captions of a table; rows with the same path are captions of one image.

    Columns of captions are one called as such, or all that are numbered, such as ``caption_0``. A
    cell may hold several captions as a JSON list. A ``.txt`` whose first line is ``image,caption``
    has a caption behind the first comma of each line, with all its commas and quotes; one with
    ``IMAGE#0``, a tab and a caption in each line is read too.

    Args:
        path: of the table.
        name: of the data set.
        split: taken where the table has a column ``split``.
        root: folder that relative paths start from; None: where the first image is found.

    Raises:
        ValueError: the table cannot be read, a column is missing, or a row has no caption or no
            file.
    """
    if path.suffix.lower() in (".txt", ".token"):
        lines = _flickr_lines(path)
        if lines is not None:
            return captioned_set(path, name, split, root, lines)
    return captioned_set(path, name, split, root, _rows(read_table(path).of_split(split)))


def _rows(table: Table) -> Iterator[Captioned]:
    image = table.column("image", IMAGE_NAMES)
    numbered = [column for column in table.columns if _NUMBERED.fullmatch(column)]
    columns = numbered or [table.column("caption", _CAPTIONS)]
    for row in range(len(table)):
        where = table.where(row)
        path = table.columns[image][row]
        if not isinstance(path, str) or not path:
            raise ValueError(f"{where}: column {image!r} is empty or no text; fill it")
        cells = (table.columns[column][row] for column in columns)
        captions = [caption for cell in cells for caption in _captions(where, cell)]
        if not captions:
            raise ValueError(f"{where}: no caption in {', '.join(columns)}; fill one, or leave out")
        yield Captioned(where, path, captions)


def _captions(where: str, cell: Any) -> Iterable[str]:
    """The captions of a cell: one, several in a list, or none."""
    if isinstance(cell, str) and cell.startswith("["):
        try:
            cell = json.loads(cell)
        except ValueError:
            return [cell]
    cells = cell if isinstance(cell, list) else [cell]
    wrong = next((each for each in cells if each is not None and not isinstance(each, str)), None)
    if wrong is not None:
        raise ValueError(f"{where}: a caption is {wrong!r}, which is no text")
    return [each.strip() for each in cells if each and each.strip()]


def _flickr_lines(path: Path) -> Iterator[Captioned] | None:
    """The lines of a file as Flickr8k and Flickr30k come with; None where it is none."""
    try:
        with open_lines(str(path)) as text:
            lines = [line.strip() for line in text]
    except OSError as error:
        raise ValueError(f"cannot read {str(path)!r}: {error.strerror}; look at its path") from None
    first = lines[0].lower().replace(" ", "") if lines else ""
    if first == _HEADER:
        return _cut_lines(path, lines, 1)
    return _cut_lines(path, lines, 0) if lines and _TOKEN.fullmatch(lines[0]) else None


def _cut_lines(path: Path, lines: list[str], start: int) -> Iterator[Captioned]:
    for number, line in enumerate(lines[start:], start + 1):
        if not line:
            continue
        where = f"{str(path)!r}, line {number}"
        if start:
            image, _, caption = line.partition(",")
        else:
            cut = _TOKEN.fullmatch(line)
            image, caption = cut.groups() if cut else (line, "")
        if not caption.strip():
            raise ValueError(f"{where}: {line[:60]!r} has no caption; write one behind the image")
        yield Captioned(where, image.strip(), [caption.strip()])
