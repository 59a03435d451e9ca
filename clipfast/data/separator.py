"""What separates the cells of a table: what was asked for, what it says itself, or what fits."""

import re
from collections.abc import Iterable, Sequence
from itertools import islice

from clipfast.data.columns import NoColumn, both_columns
from clipfast.data.packitem import TableOptions
from clipfast.data.tablerows import Lines, Rows

# Lines among which names of columns are looked for that the first one does not hold.
_HEAD = 10
_SEPARATORS = (",", "\t", ";", "|")
# A spreadsheet's own first line, which says what separates the cells.
_DIRECTIVE = re.compile('["\ufeff]*sep=(.)"?[\r\n]*', re.IGNORECASE)


def name_of(separator: str) -> str:
    """What a message calls a separator."""
    return "tab" if separator == "\t" else repr(separator)


def separator_of(path: str, lines: Lines, usual: str, options: TableOptions) -> str:
    """The separator of a table; a first line ``sep=;`` is passed over.

    Args:
        path: of the table, for messages.
        lines: of the table, none of them read yet.
        usual: separator that the file's name tells.
        options: separator, quote, names of columns.

    Raises:
        ValueError: no separator, or several, give the first row an image's and a caption's column.
    """
    told = _DIRECTIVE.fullmatch(next(lines, ""))
    directive = told.group(1) if told else ""
    lines.keep(1 if directive else 0)
    asked = options.separator_character or directive
    if asked and asked == options.quote_character:
        raise ValueError(f"{path!r}: {asked!r} cannot be both --separator and --quote")
    return _that_fits(path, lines, [asked] if asked else [usual, *_SEPARATORS], options)


def _that_fits(path: str, lines: Lines, choice: Sequence[str], options: TableOptions) -> str:
    """The one separator that gives the first row both columns."""
    quote = options.quote_character
    headers = {}
    for separator in choice:
        if separator not in headers and separator != quote:
            row = Rows(lines, separator, quote).read()
            lines.keep(0)
            headers[separator] = row.cells if row else []
    fits: list[str] = []
    errors: dict[str, ValueError] = {}
    for separator, names in headers.items():
        try:
            both_columns(path, names, options)
            fits.append(separator)
        except ValueError as error:
            errors[separator] = error
    if len(fits) == 1 or not any(headers.values()):
        return fits[0] if fits else choice[0]
    if fits:
        told = " or ".join(name_of(each) for each in fits)
        raise ValueError(f"{path!r}: its cells may be separated by {told}; say by --separator")
    # The one that cuts most tells the names that a person sees.
    best = max(headers, key=lambda each: len(headers[each]))
    why = errors[best]
    if not isinstance(why, NoColumn):
        raise why
    lower = _names_below(path, lines, headers, options)
    if lower:
        raise ValueError(
            f"{path!r}: line {lines.passed + 1} holds no names of columns, and line "
            f"{lines.passed + lower} does; it must be the first"
        )
    raise ValueError(f"{why}; cells are cut at {name_of(best)}, --separator names another one")


def _names_below(path: str, lines: Lines, separators: Iterable[str], options: TableOptions) -> int:
    """Number of the first line, from 1, that holds both columns; 0 where none does."""
    head = list(islice(lines, _HEAD))
    lines.keep(0)
    for number, line in enumerate(head, 1):
        for separator in separators:
            row = Rows(Lines([line]), separator, options.quote_character).read()
            try:
                both_columns(path, row.cells if row else [], options)
            except ValueError:
                continue
            return number
    return 0
