"""A drawing with two axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from clipfast.eval.report.markup import Markup, tag

_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 16, 14, 46


@dataclass
class Axes:
    """A frame to draw in.

    Attributes:
        title: what is drawn, for those who do not see it.
        x_title, y_title: of the axes.
        x_ticks, y_ticks: values that are named, ascending; the first and the last are the ends.
        x_scale, y_scale: of a value, where axes are not even.
        width, height: in pixels on a wide screen.
        parts: of the drawing, in the order in which they are drawn.
    """

    title: str
    x_title: str
    y_title: str
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    x_scale: Callable[[float], float] = float
    y_scale: Callable[[float], float] = float
    width: int = 560
    height: int = 340
    parts: list[Markup] = field(default_factory=list)

    def x(self, value: float) -> float:
        """Where a value of the first axis is."""
        return self._at(value, self.x_ticks, self.x_scale, _LEFT, self.width - _RIGHT)

    def y(self, value: float) -> float:
        """Where a value of the second axis is."""
        return self._at(value, self.y_ticks, self.y_scale, self.height - _BOTTOM, _TOP)

    def line(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        """A line through points.

        Args:
            points: at least two.
            kind: classes of the style sheet.
        """
        path = "L".join(f"{self.x(x)} {self.y(y)}" for x, y in points)
        self.parts.append(tag("path", d=f"M{path}", class_=f"line {kind}"))

    def mark(self, x: float, y: float, kind: str, shape: str = "circle", says: str = "") -> None:
        """A point.

        Args:
            x: of it.
            y: of it.
            kind: classes of the style sheet.
            shape: "circle", "square", "diamond" or "triangle".
            says: shown where the pointer rests.
        """
        at, up = self.x(x), self.y(y)
        paths = {
            "circle": f"M{at - 4} {up}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
            "square": f"M{at - 4} {up - 4}h8v8h-8z",
            "diamond": f"M{at} {up - 5.5}l5.5 5.5l-5.5 5.5l-5.5 -5.5z",
            "triangle": f"M{at} {up - 5}l5 9h-10z",
        }
        self.parts.append(
            tag("path", tag("title", says) if says else None, d=paths[shape], class_=f"mark {kind}")
        )

    def spread(self, x: float, low: float, high: float, kind: str) -> None:
        """A vertical line from one value to another.

        Args:
            x: where it is.
            low: of the second axis.
            high: of the second axis.
            kind: classes of the style sheet.
        """
        self.line([(x, low), (x, high)], f"spread {kind}")

    def words(self, x: float, y: float, text: str, anchor: str = "start") -> None:
        """Words above a point.

        Args:
            x: of it.
            y: of it.
            text: what is written.
            anchor: "start", "middle" or "end".
        """
        at = {"x": self.x(x), "y": round(self.y(y) - 7, 1)}
        self.parts.append(tag("text", text, text_anchor=anchor, class_="note", **at))

    def draw(self) -> Markup:
        """The drawing."""
        right, floor = self.width - _RIGHT, self.height - _BOTTOM
        grid, names = [], []
        for value, name in self.x_ticks:
            grid.append(f"M{self.x(value)} {_TOP}V{floor}")
            names.append(tag("text", name, x=self.x(value), y=floor + 18, text_anchor="middle"))
        for value, name in self.y_ticks:
            grid.append(f"M{_LEFT} {self.y(value)}H{right}")
            names.append(tag("text", name, x=_LEFT - 8, y=self.y(value) + 4, text_anchor="end"))
        middle = (_TOP + floor) / 2
        names += [
            tag("text", self.x_title, x=(_LEFT + right) / 2, y=self.height - 8, class_="title"),
            tag(
                "text",
                self.y_title,
                transform=f"translate(14 {middle}) rotate(-90)",
                class_="title",
            ),
        ]
        return tag(
            "svg",
            tag("title", self.title),
            tag("path", d="".join(grid), class_="grid"),
            *names,
            *self.parts,
            viewBox=f"0 0 {self.width} {self.height}",
            class_="chart",
            role="img",
            aria_label=self.title,
        )

    @staticmethod
    def _at(
        value: float,
        ticks: Sequence[tuple[float, str]],
        scale: Callable[[float], float],
        start: float,
        end: float,
    ) -> float:
        low, high = scale(ticks[0][0]), scale(ticks[-1][0])
        share = (scale(value) - low) / (high - low)
        return round(start + min(max(share, 0.0), 1.0) * (end - start), 1)


def percent_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Ticks of shares around some values, four to seven of them.

    Args:
        low: the smallest value, in [0, 1].
        high: the largest.
    """
    for step in (0.01, 0.02, 0.05, 0.1, 0.2):
        first = int(max(low, 0.0) / step + 1e-9)
        last = min(-int(-min(high, 1.0) / step - 1e-9) + 1, round(1 / step))
        last = max(last, first + 1)
        if last - first <= 6:
            break
    return [(step * i, f"{step * i:.0%}") for i in range(first, last + 1)]
