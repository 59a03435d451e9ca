"""Which columns of a table hold the image and the caption."""

from collections.abc import Sequence

from clipfast.data.packitem import TableOptions
from clipfast.data.tabletext import is_text

IMAGE_COLUMNS = ("file", "filepath", "image", "path")
# Names, and letters of each, that a message shows.
_SHOWN = 40
CAPTION_COLUMNS = ("caption", "title", "text")


class NoColumn(ValueError):
    """No column has a name that was looked for."""


def plain_names(names: Sequence[str]) -> list[str]:
    """Names of columns as they are compared: without case, or white space around them."""
    return [name.replace("\ufeff", "").strip().lower() for name in names]


def both_columns(path: str, names: Sequence[str], options: TableOptions) -> tuple[int, int]:
    """Positions of the image's and the caption's column.

    Args:
        path: of the table, for messages.
        names: of all columns.
        options: names that were asked for.

    Raises:
        ValueError: there is no such column, or there are several.
    """
    return (
        _column(path, names, "image", options.image_column, IMAGE_COLUMNS),
        _column(path, names, "caption", options.caption_column, CAPTION_COLUMNS),
    )


def _column(
    path: str, names: Sequence[str], kind: str, wanted: str | None, usual: Sequence[str]
) -> int:
    """The column asked for, or the first of the usual ones."""
    told = ", ".join(repr(name[:_SHOWN]) for name in names[:_SHOWN])
    told += ", ..." if len(names) > _SHOWN else ""
    if wanted is not None:
        exact = [i for i, name in enumerate(names) if name == wanted]
        alike = [i for i, name in enumerate(plain_names(names)) if name == wanted.strip().lower()]
        found = exact or alike
        if not found:
            _refuse_bytes(path, names)
            raise NoColumn(f"{path!r} has no column {wanted!r} for the {kind}; its columns: {told}")
    else:
        plain = plain_names(names)
        name = next((name for name in usual if name in plain), None)
        found = [i for i, each in enumerate(plain) if each == name]
        if not found:
            _refuse_bytes(path, names)
            raise NoColumn(
                f"{path!r} has none of the columns {', '.join(usual)} for the {kind}; its columns: "
                f"{told}. Name one with --{kind}-column (the first row must hold names)"
                + ('; --quote "\'" reads single quotes' if _in_single(names) else "")
            )
    if len(found) > 1:
        raise ValueError(
            f"{path!r} has {len(found)} columns {names[found[0]]!r} for the {kind}: rename all but "
            f"one, or name another with --{kind}-column; its columns: {told}"
        )
    return found[0]


def _refuse_bytes(path: str, names: Sequence[str]) -> None:
    """Names that were not decoded cannot be looked for."""
    if not all(map(is_text, names)):
        raise ValueError(
            f"{path!r}: the names of its columns have bytes that are not of the table's encoding; "
            "name the encoding, such as --encoding cp1252"
        )


def _in_single(names: Sequence[str]) -> bool:
    return all(len(name) > 2 and name[0] == name[-1] == "'" for name in names)
