"""A table of image paths and captions."""

import csv
from pathlib import Path

import numpy as np

from clipfast.data.columns import CAPTION_COLUMNS, IMAGE_COLUMNS, plain_names
from clipfast.eval.sets.files import ImageFiles
from clipfast.eval.sets.kinds import CaptionedSet


def read_caption_table(path: Path, split: str, root: Path) -> CaptionedSet:
    """Images and captions of a CSV; rows with the same path are captions of one image.

    Args:
        path: of the table; its first row names the columns.
        split: the name that results get.
        root: folder that relative paths start from.

    Raises:
        ValueError: the table cannot be read, a column is missing, or a row has no caption or no
            file.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file, strict=True) if row]
    except OSError as error:
        raise ValueError(f"cannot read {str(path)!r}: {error.strerror}; look at its path") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{str(path)!r} is no CSV in UTF-8: {error}; save it as such") from None
    header = plain_names(rows[0]) if rows else []
    image = next((header.index(name) for name in IMAGE_COLUMNS if name in header), None)
    caption = next((header.index(name) for name in CAPTION_COLUMNS if name in header), None)
    if image is None or caption is None:
        raise ValueError(
            f"{str(path)!r} needs a column {', '.join(IMAGE_COLUMNS)} and a column "
            f"{', '.join(CAPTION_COLUMNS)} in its first row; it has {', '.join(header) or 'none'}"
        )
    number_of: dict[str, int] = {}
    captions: list[str] = []
    image_of: list[int] = []
    for number, row in enumerate(rows[1:], 2):
        if len(row) != len(header):
            raise ValueError(
                f"{str(path)!r}, row {number} has {len(row)} cells, and the first row "
                f"{len(header)}; put a cell that holds a comma in quotes"
            )
        file_path = str(root / row[image])
        if file_path not in number_of and not Path(file_path).is_file():
            raise ValueError(
                f"{str(path)!r}, row {number}: there is no file {file_path!r}; give the folder of "
                "the images as root"
            )
        image_of.append(number_of.setdefault(file_path, len(number_of)))
        captions.append(row[caption])
    return CaptionedSet(
        name=path.stem,
        split=split,
        encoded=ImageFiles(list(number_of)),
        captions=captions,
        image_of=np.array(image_of, np.int64),
    )
