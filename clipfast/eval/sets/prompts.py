"""Class names and prompt templates: files of lines, and what must hold of them."""

import logging
from collections.abc import Sequence
from pathlib import Path

SLOT = "{c}"
# Of a data set that nobody gave templates for.
USUAL_TEMPLATES = (f"a photo of a {SLOT}.",)

_log = logging.getLogger(__name__)


def read_classnames(path: str | Path) -> tuple[str, ...]:
    """Class names of a file, one a line, in the order of the labels.

    Raises:
        ValueError: the file cannot be read, or has no name.
    """
    names = _lines(path)
    check_classnames(names, str(path))
    empty = [number for number, name in enumerate(names, 1) if not name]
    if empty:
        _log.warning("%s: the class of line %d has an empty name", path, empty[0])
    return names


def read_templates(path: str | Path) -> tuple[str, ...]:
    """Templates of a file, one a line, each with the slot ``{c}``.

    Raises:
        ValueError: the file cannot be read, a line is empty, or one has no slot.
    """
    templates = _lines(path)
    check_templates(templates, str(path))
    return templates


def check_classnames(names: Sequence[str], where: str) -> None:
    """Refuse a list without class names. One may be empty: CLEVR's "{c} shapes." has such.

    Args:
        names: in the order of the labels.
        where: they stand, for the message.

    Raises:
        ValueError: there is none.
    """
    if not any(names):
        raise ValueError(f"{where}: no class names; give a file with one a line (--classnames)")


def check_templates(templates: Sequence[str], where: str) -> None:
    """Refuse templates that would give each class the same prompt.

    Args:
        templates: to check.
        where: they stand, for the message.

    Raises:
        ValueError: there is none, or one has no slot ``{c}``.
    """
    if not any(templates):
        raise ValueError(f"{where}: no templates; give a file with one a line (--templates)")
    for number, template in enumerate(templates, 1):
        if SLOT not in template:
            raise ValueError(
                f"{where}, template {number}: {template!r} has no slot {SLOT}; write {SLOT} where "
                "the class name goes"
            )


def _lines(path: str | Path) -> tuple[str, ...]:
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"cannot read {str(path)!r}: {error.strerror}; look at its path") from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{str(path)!r} is not UTF-8 (byte {error.start}); save it as UTF-8"
        ) from None
    # str.splitlines would also cut at characters that a name may hold.
    return tuple(line.strip() for line in text.rstrip().split("\n"))
