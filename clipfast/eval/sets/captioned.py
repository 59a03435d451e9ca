"""Gather what was read of images and captions into a set."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clipfast.eval.sets.files import ImageFiles
from clipfast.eval.sets.imageroots import check_files, find_root
from clipfast.eval.sets.kinds import CaptionedSet


@dataclass(frozen=True)
class Captioned:
    """Captions of an image, of which there may be more elsewhere.

    Attributes:
        where: they were read, for messages.
        path: of the image, as it was written.
        captions: one or more.
    """

    where: str
    path: str
    captions: list[str]


def captioned_set(
    source: Path, name: str, split: str, root: Path | None, found: Iterable[Captioned]
) -> CaptionedSet:
    """A set of all that was found; images in the order in which they are first named.

    Captions of one image stand together, in their order.

    Args:
        source: file that they were read from.
        name: of the data set.
        split: of it.
        root: folder that relative paths start from; None: where the first image is found.
        found: images and captions.

    Raises:
        ValueError: nothing was found, or an image is missing.
    """
    captions_of: dict[str, list[str]] = {}
    wheres: list[str] = []
    for each in found:
        if each.path not in captions_of:
            wheres.append(each.where)
        captions_of.setdefault(each.path, []).extend(each.captions)
    if captions_of:
        root = find_root(source, root, next(iter(captions_of)))
    files = [str((root or source.parent) / path) for path in captions_of]
    check_files(source, files, wheres)
    counts = [len(captions) for captions in captions_of.values()]
    return CaptionedSet(
        name=name,
        split=split,
        encoded=ImageFiles(files),
        captions=[caption for captions in captions_of.values() for caption in captions],
        image_of=np.repeat(np.arange(len(counts), dtype=np.int64), counts),
    )
