"""A folder of images: one subfolder per class."""

import logging
from collections.abc import Sequence
from os.path import splitext
from pathlib import Path

import numpy as np

from clipfast.data.folderwalk import walk_once
from clipfast.data.kinds import image_extensions
from clipfast.eval.sets.files import ImageFiles
from clipfast.eval.sets.found import FoundSet
from clipfast.eval.sets.naming import sorted_names
from clipfast.storage.paths import join

# What folders of splits are called.
_SPLITS = ("train", "trainval", "val", "valid", "validation", "test")

_log = logging.getLogger(__name__)


def read_folder(path: Path, splits: Sequence[str]) -> FoundSet:
    """Images of ``path/SPLIT/CLASS/`` or, without such a split, of ``path/CLASS/``.

    Labels follow the sorted names of the subfolders, those of all splits together; numerals are
    sorted by their number. Images follow their sorted paths, at any depth below their class. Hidden
    files are passed over. Other files that are no images are counted in the log.

    Args:
        path: of the folder.
        splits: names of the split. The first is taken that is a subfolder with subfolders.

    Raises:
        ValueError: there is no subfolder, no image in one, or no such split among others.
    """
    top = next((path / split for split in splits if _classes(path / split)), path)
    classes = _classes(top)
    if top != path and top.name in splits[1:]:
        _log.warning("%s: there is no split %r, so %r is taken", path, splits[0], top.name)
    if not classes:
        raise ValueError(
            f"folder {str(path)!r} has no subfolders: it needs one per class, with its images in it"
        )
    if top == path and all(name in _SPLITS for name in classes):
        why = "which has no subfolder per class" if splits[0] in classes else "which is none"
        raise ValueError(
            f"folder {str(path)!r} has the splits {', '.join(classes)}; got {splits[0]!r}, {why}"
        )
    if top != path:
        # All splits give the classes their places: labels of one mean the same in another.
        here = classes
        siblings = [path / split for split in _SPLITS]
        classes = sorted_names(list({name for each in (top, *siblings) for name in _classes(each)}))
        absent = [name for name in classes if name not in here]
        if absent:
            _log.warning("%s: %d classes have no folder, such as %s", top, len(absent), absent[0])
    paths: list[str] = []
    labels: list[int] = []
    others: list[str] = []
    for label, name in enumerate(classes):
        if not (top / name).is_dir():
            continue
        images, passed = _images(top / name)
        if not images:
            raise ValueError(
                f"class folder {str(top / name)!r} holds no image; fill it, or remove it"
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
        label_names=tuple(classes),
        beside=path,
    )


def _classes(path: Path) -> list[str]:
    """Names of the subfolders, sorted."""
    if not path.is_dir():
        return []
    names = [each.name for each in path.iterdir() if each.is_dir()]
    return sorted_names([name for name in names if not name.startswith(".")])


def _images(folder: Path) -> tuple[list[str], list[str]]:
    """Paths of the images below a folder, sorted, and of what is none."""
    notes: list[tuple[str, str]] = []
    images: list[str] = []
    others: list[str] = []
    extensions = image_extensions()
    for at, listed in walk_once(str(folder), notes):
        for each in listed:
            if not each.name.startswith("."):
                known = splitext(each.name)[1].lower() in extensions
                (images if known and each.is_file else others).append(join(at, each.name))
    for source, why in notes:
        _log.warning("%s: %s", folder / source, why)
    return sorted(images), sorted(others)
