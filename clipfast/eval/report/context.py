"""What all sections of a page share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Any

from clipfast.eval.report.markup import Markup
from clipfast.eval.report.reading import Odd, Result

# Of a file of foreign make anything can be expected but the keys that were looked at.
_DAMAGE = (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError)
# Pictures on a page: about 3 MB.
_MOST_PICTURES = 600


class Context:
    """Names of the models, and what could not be shown.

    Args:
        results: all of the page.
        odd: files that are no results.
    """

    def __init__(self, results: Sequence[Result], odd: Sequence[Odd] = ()) -> None:
        self.results = tuple(results)
        self.odd = list(odd)
        self._labels = _labels(results)

    def of(self, task: str) -> list[Result]:
        """Results of a task.

        Args:
            task: as the files have it.
        """
        return [result for result in self.results if result.task == task]

    def label(self, result: Result) -> str:
        """What its model is called here: as short as it can be told from the others."""
        return self._labels[result.model, result.pretrained]

    @property
    def labels(self) -> tuple[str, ...]:
        """Of all models, in the order of the results."""
        return tuple(self._labels.values())

    def place(self, result: Result) -> int:
        """The number of its model, for a colour."""
        return list(self._labels).index((result.model, result.pretrained))

    @property
    def pictures_per_result(self) -> int:
        """So that the page does not grow with the number of results."""
        return max(2, min(24, _MOST_PICTURES // len(self.results)))

    def attempt(
        self, what: str, result: Result, render: Callable[[Result], Markup | None]
    ) -> Markup | None:
        """A part of the page; None, and an entry in ``odd``, where its numbers cannot be read.

        Args:
            what: the part, for a person.
            result: that it is of.
            render: makes it.
        """
        made = self.tried(what, result, render)
        return made if isinstance(made, Markup) else None

    def tried(self, what: str, result: Result, read: Callable[[Result], Any]) -> Any:
        """What ``read`` finds; None, and an entry in ``odd``, where it cannot.

        Args:
            what: is read, for a person.
            result: that it is of.
            read: finds it.
        """
        try:
            return read(result)
        except _DAMAGE as error:
            self.odd.append(
                Odd(result.path, f"{what} cannot be read ({type(error).__name__}: {error})")
            )
            return None


def _labels(results: Sequence[Result]) -> dict[tuple[str, str], str]:
    models = dict.fromkeys((result.model, result.pretrained) for result in results)
    names = [model for model, _ in models]
    shorts = [(model, _short(pretrained)) for model, pretrained in models]
    labels = {}
    for (model, pretrained), (_, short) in zip(models, shorts, strict=True):
        if names.count(model) == 1:
            labels[model, pretrained] = model
        elif shorts.count((model, short)) == 1:
            labels[model, pretrained] = f"{model} {short}"
        else:
            labels[model, pretrained] = f"{model} {pretrained}"
    return labels


def _short(pretrained: str) -> str:
    path = PurePath(pretrained)
    return path.parent.name if path.stem == "final" and path.parent.name else path.name
