"""The lists of words that come with the package: class names, templates, names of folders."""

import json
from functools import cache
from pathlib import Path

from clipfast.names import did_you_mean

_FOLDER = Path(__file__).parent / "words"


def classnames_of(name: str) -> tuple[str, ...]:
    """Class names, in the order of the labels.

    Args:
        name: of the list, one of ``list_words("classnames")``.

    Raises:
        ValueError: there is no such list.
    """
    return _words("classnames", name)


def templates_of(name: str) -> tuple[str, ...]:
    """Templates, each with the slot ``{c}``.

    Args:
        name: of the list, one of ``list_words("templates")``.

    Raises:
        ValueError: there is no such list.
    """
    return _words("templates", name)


def folders_of(name: str) -> tuple[str, ...]:
    """Names that a published data set gives the folders of its classes, in the order of the labels.

    Args:
        name: of the list, one of ``list_words("folders")``.

    Raises:
        ValueError: there is no such list.
    """
    return _words("folders", name)


@cache
def list_words(kind: str) -> tuple[str, ...]:
    """Names of all lists of one kind, sorted.

    Args:
        kind: ``classnames``, ``templates`` or ``folders``.
    """
    return tuple(sorted(path.stem for path in (_FOLDER / kind).glob("*.json")))


@cache
def _words(kind: str, name: str) -> tuple[str, ...]:
    known = list_words(kind)
    if name not in known:
        raise ValueError(
            f"there is no list of {kind} {name!r}.{did_you_mean(name, known)} Known: "
            f"{', '.join(known)}"
        )
    return tuple(json.loads((_FOLDER / kind / f"{name}.json").read_text(encoding="utf-8")))
