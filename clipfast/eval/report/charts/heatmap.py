"""Which classes are taken for which, as a picture."""

from __future__ import annotations

from collections.abc import Sequence

from clipfast.eval.report.markup import Markup, tag

# Shades of the style sheet: class h1 to h8.
_SHADES = 8
_CELL = 22
_LETTER = 7
_LONGEST = 22
_CUT = "\N{HORIZONTAL ELLIPSIS}"


def heatmap(title: str, names: Sequence[str], shares: Sequence[Sequence[float]]) -> Markup:
    """A square of cells: the row is what an image is, the column what it was taken for.

    Cells of one shade are one path, so that 30 x 30 of them take a few kilobytes.

    Args:
        title: for those who do not see it.
        names: C class names.
        shares: ``[C][C]`` in [0, 1], of the images of the row.
    """
    shorts = [n if len(n) <= _LONGEST else n[: _LONGEST - 1] + _CUT for n in names]
    left = _LETTER * max(map(len, shorts)) + 12
    side = _CELL * len(names)
    paths = [""] * (_SHADES + 1)
    for i, row in enumerate(shares):
        for j, share in enumerate(row):
            x, y = left + j * _CELL, left + i * _CELL
            # A single image of many is seen too.
            shade = min(_SHADES, int(share * _SHADES) + 1) if share > 0 else 0
            paths[shade] += f"M{x} {y}h{_CELL - 1}v{_CELL - 1}h-{_CELL - 1}z"
    words = []
    for i, name in enumerate(shorts):
        at = left + i * _CELL + _CELL / 2
        words.append(tag("text", name, x=left - 6, y=at + 4, text_anchor="end"))
        words.append(tag("text", name, transform=f"translate({at + 4} {left - 6}) rotate(-90)"))
    return tag(
        "svg",
        tag("title", title),
        *(tag("path", d=path, class_=f"h{shade}") for shade, path in enumerate(paths) if path),
        *words,
        viewBox=f"0 0 {left + side} {left + side}",
        width=left + side,
        class_="heat",
        role="img",
        aria_label=title,
    )


def legend() -> Markup:
    """What the shades mean."""
    cells = [
        tag("rect", x=i * 24, y=0, width=23, height=12, class_=f"h{i}") for i in range(_SHADES + 1)
    ]
    words = [
        tag("text", "0", x=0, y=26),
        tag("text", "100%", x=24 * (_SHADES + 1), y=26, text_anchor="end"),
    ]
    return tag(
        "svg",
        *cells,
        *words,
        viewBox=f"0 0 {24 * (_SHADES + 1)} 30",
        width=24 * (_SHADES + 1),
        class_="legend",
        role="img",
        aria_label="Shades from none of a class's images to all of them",
    )
