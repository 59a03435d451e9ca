"""Small drawings for the cells of a table. The numbers stand beside them, so readers skip them."""

from __future__ import annotations

from collections.abc import Sequence

from clipfast.eval.report.markup import Markup, tag

_WIDTH, _HEIGHT = 100, 12


def bar(value: float | None, interval: tuple[float, float] | None = None) -> Markup | None:
    """A share as a bar, its interval as a line.

    Args:
        value: in [0, 1]; None: no bar.
        interval: that holds the true one.
    """
    if value is None:
        return None
    parts = [
        tag("rect", width=_WIDTH, height=8, y=2, class_="track"),
        tag("rect", width=_at(value), height=8, y=2, class_="bar"),
    ]
    if interval is not None:
        low, high = map(_at, interval)
        parts.append(tag("path", d=f"M{low} 6H{high}M{low} 3V9M{high} 3V9", class_="whisker"))
    return _cell(parts)


def interval_mark(value: float, interval: tuple[float, float] | None) -> Markup:
    """A share as a dot on the line from 0 to 1, its interval as a line.

    Args:
        value: in [0, 1].
        interval: that holds the true one.
    """
    return dots([value], interval)


def dots(
    values: Sequence[float | None],
    interval: tuple[float, float] | None = None,
    low: float = 0.0,
    high: float = 1.0,
) -> Markup:
    """Shares as dots on a line, each of its own colour.

    Args:
        values: in [0, 1]; None is left out.
        interval: of the last.
        low: where the line begins.
        high: where it ends.
    """
    width = high - low if high > low else 1.0
    parts = [tag("path", d=f"M0 6H{_WIDTH}M0 4V8M50 4V8M{_WIDTH} 4V8", class_="axis")]
    if interval is not None:
        first, last = (_at((end - low) / width) for end in interval)
        parts.append(tag("path", d=f"M{first} 6H{last}", class_=f"range s{len(values) - 1}"))
    for place, value in enumerate(values):
        if value is not None:
            # A line without length and with round ends: a dot that a stretched drawing keeps round.
            parts.append(
                tag("path", d=f"M{_at((value - low) / width)} 6h0", class_=f"dot s{place}")
            )
    return _cell(parts)


def _at(value: float) -> float:
    return round(min(max(value, 0.0), 1.0) * _WIDTH, 1)


def _cell(parts: Sequence[Markup]) -> Markup:
    return tag(
        "svg",
        *parts,
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        preserveAspectRatio="none",
        class_="cell",
        aria_hidden="true",
    )
