"""What separates the cells of a table: what was asked for, what it says itself, or what fits."""

import re

from clipfast.data.columns import both_columns
from clipfast.data.packitem import TableOptions
from clipfast.data.tablerows import Lines, Rows

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
    return asked or _that_fits(path, lines, usual, options)


def _that_fits(path: str, lines: Lines, usual: str, options: TableOptions) -> str:
    """The one separator that gives the first row both columns."""
    quote = options.quote_character
    headers = {}
    for separator in (usual, *_SEPARATORS):
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
        return fits[0] if fits else usual
    if fits:
        told = " or ".join(name_of(each) for each in fits)
        raise ValueError(f"{path!r}: its cells may be separated by {told}; say by --separator")
    # The one that cuts most tells the names that a person sees.
    best = max(headers, key=lambda each: len(headers[each]))
    raise ValueError(
        f"{errors[best]}; cells are cut at {name_of(best)}, --separator names another one"
    )
