"""A folder of images: one subfolder per class."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clipfast.data.kinds import image_extensions
from clipfast.eval.sets.files import ImageFiles
from clipfast.eval.sets.found import FoundSet
from clipfast.eval.sets.naming import sorted_names

_log = logging.getLogger(__name__)


def read_folder(path: Path, splits: Sequence[str]) -> FoundSet:
    """Images of ``path/SPLIT/CLASS/`` or, without such a split, of ``path/CLASS/``.

    Labels follow the sorted names of the subfolders; numerals are sorted by their number. Images
    follow their sorted paths, at any depth below their class. Hidden files are passed over. Other
    files that are no images are counted in the log.

    Args:
        path: of the folder.
        splits: names of the split. The first is taken that is a subfolder with subfolders.

    Raises:
        ValueError: there is no subfolder, or no image in one.
    """
    top = next((path / split for split in splits if _folders(path / split)), path)
    classes = _folders(top)
    if not classes:
        raise ValueError(
            f"folder {str(path)!r} has no subfolders: it needs one per class, with its images in it"
        )
    paths: list[str] = []
    labels: list[int] = []
    others: list[str] = []
    for label, folder in enumerate(classes):
        images, passed = _images(folder)
        if not images:
            raise ValueError(
                f"class folder {str(folder)!r} holds no image; a class without images would shift "
                "no label, so remove the folder or fill it"
            )
        paths += images
        labels += [label] * len(images)
        others += passed
    if others:
        _log.warning("%s: %d files are no images, such as %s", top, len(others), others[0])
    return FoundSet(
        name=path.resolve().name,
        labels=np.array(labels, np.int64),
        encoded=ImageFiles(paths),
        label_names=tuple(folder.name for folder in classes),
        beside=path,
    )


def _folders(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    names = [each.name for each in path.iterdir() if each.is_dir()]
    return [path / name for name in sorted_names([n for n in names if not n.startswith(".")])]


def _images(folder: Path) -> tuple[list[str], list[str]]:
    """Paths of the images below a folder, sorted, and of what is none."""
    files = sorted(
        str(path) for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")
    )
    extensions = image_extensions()
    images = [path for path in files if Path(path).suffix.lower() in extensions]
    return images, [path for path in files if Path(path).suffix.lower() not in extensions]
