"""Evaluations by name, as ``--eval.names`` asks for them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from clipfast.eval.evaluation import Evaluation
from clipfast.names import did_you_mean


@dataclass(frozen=True)
class EvaluationData:
    """What a run is measured on.

    Attributes:
        sources: names of the sets of ``--data.eval``. The encoder takes them, and scalars are named
            after them: ``eval/NAME/...``.
        trained_on: the training data: the name of a set that is measured too, else the pattern.
    """

    sources: tuple[str, ...] = ()
    trained_on: tuple[str, ...] = ()


_BUILDERS: dict[str, Callable[[EvaluationData], Evaluation]] = {}


def register(name: str, build: Callable[[EvaluationData], Evaluation]) -> None:
    """Make an evaluation known, for ``--eval.names``.

    Args:
        name: how it is asked for; its picture is NAME.png.
        build: makes it for a run.

    Raises:
        ValueError: the name is taken.
    """
    if name in _BUILDERS:
        raise ValueError(f"there is an evaluation {name!r} already: give yours another name")
    _BUILDERS[name] = build


def list_evaluations() -> list[str]:
    """Names that ``--eval.names`` takes."""
    return list(_BUILDERS)


def build_evaluations(names: Sequence[str], data: EvaluationData) -> dict[str, Evaluation]:
    """The evaluations of a run, in the order in which they are named.

    Args:
        names: of ``register``; each counts once.
        data: of the run.

    Raises:
        ValueError: a name that nothing was registered for.
    """
    for name in names:
        if name not in _BUILDERS:
            known = ", ".join(_BUILDERS)
            hint = did_you_mean(name, _BUILDERS)
            raise ValueError(f"--eval.names {name}: no such evaluation.{hint} Known: {known}")
    return {name: _BUILDERS[name](data) for name in names}
