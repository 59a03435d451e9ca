"""Tables as text."""

from __future__ import annotations

from collections.abc import Sequence


def align(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells in columns, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        line[0].ljust(widths[0])
        + "".join(
            "  " + cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)
        )
        for line in lines
    )


def digits(value: float | None, unit: float = 1) -> str:
    """A number of units with three digits; nothing where there is none."""
    if value is None:
        return ""
    value = value / unit
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def times(value: float | None) -> str:
    """A ratio: how many times as fast; nothing where there is none."""
    return "" if value is None else f"{digits(value)}x"


def mebibytes(value: float | None) -> str:
    """Bytes in MiB; nothing where they could not be measured."""
    return "" if value is None else f"{value / 2**20:,.0f}"
