"""Open a data set from what a person wrote: its place on disk, and perhaps its name."""

from pathlib import Path

from clipfast.eval.sets.captiontable import read_caption_table
from clipfast.eval.sets.folders import read_folder
from clipfast.eval.sets.found import FoundSet
from clipfast.eval.sets.kinds import CaptionedSet, LabelledSet
from clipfast.eval.sets.prompts import USUAL_TEMPLATES, read_classnames, read_templates

CLASSNAMES_FILE = "classnames.txt"
TEMPLATES_FILE = "zeroshot_classification_templates.txt"


def open_set(
    source: str,
    *,
    split: str = "test",
    classnames: Path | None = None,
    templates: Path | None = None,
) -> LabelledSet:
    """Open labelled images.

    Args:
        source: a folder with one subfolder per class.
        split: which part, such as ``test``.
        classnames: a file with one name a line, in the order of the labels; default
            ``classnames.txt`` in the folder, else the subfolders' names, ``_`` read as a blank.
        templates: a file with one prompt a line, with the slot ``{c}``; default
            ``zeroshot_classification_templates.txt`` in the folder, else "a photo of a {c}.".

    Raises:
        ValueError: the source cannot be read or has no images, or its words do not fit its labels.
            Says where, and what to do.
    """
    path = Path(source).expanduser()
    if not path.is_dir():
        raise ValueError(f"{source!r} is no folder; give one with one subfolder per class")
    found = read_folder(path, split)
    return LabelledSet(
        name=found.name,
        split=split,
        classnames=_classnames(found, classnames),
        templates=_templates(found, templates),
        labels=found.labels,
        encoded=found.encoded,
        attributes=found.attributes,
    )


def open_captions(
    source: str, *, split: str = "test", root: str | Path | None = None
) -> CaptionedSet:
    """Open images with captions.

    Args:
        source: a CSV with a column of image paths and one of captions; an image may have many rows.
        split: the name that results get.
        root: folder that relative paths start from; default that of the table.

    Raises:
        ValueError: the source cannot be read, or a row has no image or no caption. Says where, and
            what to do.
    """
    path = Path(source).expanduser()
    return read_caption_table(path, split, Path(root) if root is not None else path.parent)


def _classnames(found: FoundSet, given: Path | None) -> tuple[str, ...]:
    path = given or _beside(found, CLASSNAMES_FILE)
    if path is None:
        if found.classnames is None:
            raise ValueError(
                f"data set {found.name!r} tells no class names; give a file with one a line "
                "(--classnames)"
            )
        return found.classnames
    names = read_classnames(path)
    if found.classnames is not None and len(names) != len(found.classnames):
        raise ValueError(
            f"{str(path)!r} has {len(names)} class names, and data set {found.name!r} has "
            f"{len(found.classnames)} classes; give one line per class, in the order of the labels"
        )
    return names


def _templates(found: FoundSet, given: Path | None) -> tuple[str, ...]:
    path = given or _beside(found, TEMPLATES_FILE)
    return USUAL_TEMPLATES if path is None else read_templates(path)


def _beside(found: FoundSet, name: str) -> Path | None:
    path = None if found.beside is None else found.beside / name
    return path if path is not None and path.is_file() else None
