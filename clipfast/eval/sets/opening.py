"""Open a data set from what a person wrote: its place on disk, and perhaps its name."""

import re
from collections.abc import Sequence
from os import PathLike, fspath
from pathlib import Path

from clipfast.data.fields import Fields
from clipfast.eval.sets.captionfolders import find_caption_file
from clipfast.eval.sets.captionjson import read_caption_json
from clipfast.eval.sets.captiontable import read_caption_table
from clipfast.eval.sets.catalogue import CATALOGUE, Entry, find_entry, plain_name
from clipfast.eval.sets.cifar import find_cifar, find_sheets
from clipfast.eval.sets.emoji import is_emoji, read_emoji
from clipfast.eval.sets.folders import read_folder
from clipfast.eval.sets.found import FoundSet
from clipfast.eval.sets.idx import find_idx
from clipfast.eval.sets.kinds import CaptionedSet, LabelledSet
from clipfast.eval.sets.labelledtable import read_labelled_table
from clipfast.eval.sets.named import give_words
from clipfast.eval.sets.shards import find_shards, read_captioned, read_labelled
from clipfast.eval.sets.tables import is_table
from clipfast.names import did_you_mean

_LABELLED_FORMS = (
    "give a folder with one subfolder per class, shards (*.tar), a table (.csv, .tsv, .jsonl, "
    ".parquet) or a published archive"
)

# A name in front of a path: "wds/vtab/cifar10:data". Not the scheme of "mem://shards".
_NAMED = re.compile(r"([A-Za-z0-9][\w./+-]+):(?!//)(.+)", re.DOTALL)


def open_set(
    source: str | PathLike[str],
    *,
    split: str = "test",
    classnames: Path | None = None,
    templates: Path | None = None,
) -> LabelledSet:
    """Open labelled images.

    Args:
        source: a path, or a name and a path as in ``food101:FOLDER``. The name is one of the
            catalogue, which then gives class names, templates and metric; its results are filed
            under the name as it is written. The path is a folder with one subfolder per class,
            webdataset shards with ``.cls`` (in CLIP_benchmark's layout, or a pattern such as
            ``shards/{0..9}.tar``), a table of paths and labels (``.csv``, ``.tsv``, ``.jsonl``,
            ``.parquet``), a published archive of CIFAR-10, CIFAR-100 or MNIST, or ``sample/noto``
            and ``sample/twemoji``, the emoji that come with the package.
        split: which part, such as ``test``.
        classnames: a file with one name a line, in the order of the labels; or the name of a list
            that comes with the package. Default ``classnames.txt`` in the folder, else the
            catalogue's, else the subfolders' names, ``_`` read as a blank.
        templates: a file with one prompt a line, with the slot ``{c}``; or the name of a list, such
            as ``imagenet1k_best7``. Default ``zeroshot_classification_templates.txt`` in the
            folder, else the catalogue's, else "a photo of a {c}.".

    Raises:
        ValueError: the source cannot be read or has no images, or its words do not fit its labels.
            Says where, and what to do.
    """
    name, entry, place = _parts(fspath(source))
    if entry is not None and entry.group == "captions":
        raise ValueError(f"data set {name!r} has captions and no classes: measure retrieval on it")
    if is_emoji(place):
        entry = find_entry("emoji")
    try:
        found = _find(place, split, entry)
    except ValueError as error:
        if entry is None and plain_name(place) in CATALOGUE:
            raise ValueError(
                f"{error}. If it is the published data set, give its name too: {place}:{place}"
            ) from error
        raise
    return give_words(found, name or found.name, split, entry, classnames, templates)


def open_captions(
    source: str | PathLike[str],
    *,
    split: str = "test",
    root: str | Path | None = None,
    captions: Sequence[str] = (),
) -> CaptionedSet:
    """Open images with captions.

    Args:
        source: a path, or a name and a path as in ``flickr30k:FOLDER``. The path is a table of
            image paths and captions, with several rows or several columns per image; Karpathy's
            JSON; COCO's annotations; a folder that holds one of these; or webdataset shards with
            ``.txt``, a caption a line.
        split: which part, where the source has several.
        root: folder that relative paths start from; default that of the table, or a folder of
            images below it.
        captions: of shards, where captions are, see ``clipfast.data.Fields``.

    Raises:
        ValueError: the source cannot be read, or a row has no image or no caption. Says where, and
            what to do.
    """
    name, entry, place = _parts(fspath(source))
    if entry is not None and entry.group != "captions":
        raise ValueError(f"data set {name!r} has classes and no captions: measure zero-shot on it")
    shards = find_shards(place, split)
    if shards is not None:
        fields = Fields(captions=tuple(captions)) if captions else None
        return read_captioned(shards, name or shards.name, split, fields)
    if captions:
        raise ValueError(
            f"captions={list(captions)} says where shards hold them, and {place!r} is none"
        )
    path = Path(place).expanduser()
    if path.is_dir():
        path, folder = find_caption_file(path, split), path
        name = name or folder.resolve().name
    read = read_caption_json if path.suffix.lower() == ".json" else read_caption_table
    return read(path, name or path.stem, split, None if root is None else Path(root).expanduser())


def _parts(source: str) -> tuple[str | None, Entry | None, str]:
    """The name, its entry, and the path."""
    is_there = Path(source).expanduser().exists()
    named = None if is_there else _NAMED.fullmatch(source)
    if named is None:
        if plain_name(source) in CATALOGUE and not is_there:
            raise ValueError(
                f"{source!r} is a name without a place; say where the data set lies: "
                f"{source}:FOLDER"
            )
        return None, None, source
    name, place = named.groups()
    entry = find_entry(name)
    if entry is None:
        raise ValueError(
            f"{source!r}: there is no data set {name!r}.{did_you_mean(name, CATALOGUE)} Give the "
            f"path alone, or one of {', '.join(CATALOGUE)}"
        )
    return name, entry, place


def _find(place: str, split: str, entry: Entry | None) -> FoundSet:
    path = Path(place).expanduser()
    if path.exists():
        archived = _archived(path, split, entry)
        if archived is not None:
            return archived
    if is_emoji(place):
        return read_emoji(place)
    shards = find_shards(place, split)
    if shards is not None:
        return read_labelled(shards)
    if not path.exists():
        raise ValueError(f"{place!r} does not exist; look at its path")
    if path.is_file() and is_table(path):
        return read_labelled_table(path, split)
    if not path.is_dir():
        raise ValueError(f"{place!r} is no data set that is read here: {_LABELLED_FORMS}")
    # ImageNet's own test labels are secret: all test on its validation images.
    is_imagenet = entry is not None and entry.name == "imagenet1k"
    return read_folder(path, [split, "val"] if is_imagenet and split == "test" else [split])


def _archived(path: Path, split: str, entry: Entry | None) -> FoundSet | None:
    """A published archive of raw pixels, where this is one."""
    if entry is not None and entry.name in ("cifar10", "cifar100"):
        found = find_cifar(entry.name, path, split)
        if found is None and entry.name == "cifar10":
            found = find_sheets(path, split)
        return found
    return find_idx(path, split) if path.is_dir() else None
