"""Give the images that were found their words: the user's, the layout's, or the catalogue's."""

from pathlib import Path

import numpy as np

from clipfast.eval.sets.catalogue import Entry
from clipfast.eval.sets.found import FoundSet
from clipfast.eval.sets.kinds import LabelledSet
from clipfast.eval.sets.naming import place_names
from clipfast.eval.sets.prompts import USUAL_TEMPLATES, read_classnames, read_templates
from clipfast.eval.sets.wordlists import classnames_of, list_words, templates_of

CLASSNAMES_FILE = "classnames.txt"
TEMPLATES_FILE = "zeroshot_classification_templates.txt"


def give_words(
    found: FoundSet,
    name: str,
    split: str,
    entry: Entry | None,
    classnames: Path | None,
    templates: Path | None,
) -> LabelledSet:
    """A labelled set of what was found.

    Args:
        found: images and labels.
        name: of the data set, for the results.
        split: of it.
        entry: of the catalogue, where the data set is in it.
        classnames: file or list of ``wordlists`` that was asked for.
        templates: file or list of ``wordlists`` that was asked for.

    Raises:
        ValueError: words are missing or do not fit the labels.
    """
    names, by_position = _classnames(found, name, entry, classnames)
    labels = found.labels
    if found.label_names is not None:
        folders = None if entry is None else entry.folders
        places = place_names(
            f"data set {name!r}", found.label_names, names, folders, by_position=by_position
        )
        labels = places[labels]
    return LabelledSet(
        name=name,
        split=split,
        classnames=names,
        templates=_templates(found, entry, templates),
        labels=np.ascontiguousarray(labels),
        encoded=found.encoded,
        attributes=found.attributes,
    )


def _classnames(
    found: FoundSet, name: str, entry: Entry | None, given: Path | None
) -> tuple[tuple[str, ...], bool]:
    """The class names, and whether they were written in the order of this layout."""
    beside = _beside(found, CLASSNAMES_FILE)
    if given is not None and _is_list("classnames", given):
        return classnames_of(str(given)), False
    path = given or beside
    if path is not None:
        names = read_classnames(path)
        _check_number(found, name, entry, names, path, beside)
        return names, True
    if entry is not None and entry.classnames is not None:
        return entry.classnames, False
    if found.label_names is not None:
        return tuple(each.replace("_", " ") for each in found.label_names), True
    raise ValueError(
        f"data set {name!r} tells no class names; give a file with one a line, in the order of "
        "the labels (--classnames)"
    )


def _check_number(
    found: FoundSet,
    name: str,
    entry: Entry | None,
    names: tuple[str, ...],
    path: Path,
    beside: Path | None,
) -> None:
    """Refuse a list for numbered labels that has not one name per class, where that is known."""
    if found.label_names is not None:
        return
    classes = None if entry is None else entry.classes
    if beside is not None and path != beside:
        classes = len(read_classnames(beside))
    if found.labels.ndim == 2:
        classes = found.labels.shape[1]
    if classes is not None and len(names) != classes:
        raise ValueError(
            f"{str(path)!r} has {len(names)} class names, and data set {name!r} has {classes} "
            "classes; give one line per class, in the order of the labels"
        )


def _templates(found: FoundSet, entry: Entry | None, given: Path | None) -> tuple[str, ...]:
    if given is not None and _is_list("templates", given):
        return templates_of(str(given))
    path = given or _beside(found, TEMPLATES_FILE)
    if path is not None:
        return read_templates(path)
    return USUAL_TEMPLATES if entry is None else entry.templates


def _is_list(kind: str, given: Path) -> bool:
    """Whether a list of ``wordlists`` is meant; a file of the same name comes first."""
    return not Path(given).exists() and str(given) in list_words(kind)


def _beside(found: FoundSet, name: str) -> Path | None:
    path = None if found.beside is None else found.beside / name
    return path if path is not None and path.is_file() else None
