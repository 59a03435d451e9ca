"""Tables and figures as text."""

from collections.abc import Sequence

# A unit serves from so many of it on.
_TIMES = (
    (86_400.0, "days", 2),
    (3_600.0, "h", 2),
    (60.0, "min", 2),
    (1.0, "s", 1),
    (1e-3, "ms", 1),
    (1e-6, "us", 0),
)
_SIZES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))


def digits(value: float) -> str:
    """A number with three digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def seconds(value: float) -> str:
    """A time in the unit that fits it."""
    unit, name = next((unit, name) for unit, name, least in _TIMES if value >= least * unit)
    return f"{digits(value / unit)} {name}" if value else "0 s"


def size(value: float) -> str:
    """Bytes in the unit that fits them."""
    unit, name = next(((u, n) for u, n in _SIZES if value >= u), _SIZES[-1])
    return f"{digits(value / unit)} {name}" if value else "0"


def share(value: float) -> str:
    """A part of one in per cent."""
    return f"{100 * value:.1f}%"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table in Markdown, its columns aligned for a terminal too.

    Args:
        head: titles of the columns.
        rows: cells.
    """
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        padded = [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]
        return "| " + " | ".join(padded) + " |"

    rule = "| " + " | ".join("-" * max(3, width) for width in widths) + " |"
    return [line(head), rule, *(line(row) for row in rows)]
