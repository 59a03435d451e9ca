"""What a service that shows a run's rows has to do."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Started:
    """The run that is to be shown.

    Attributes:
        folder: of the run; its name is the run's.
        run: id of the run, the same after a resume.
        first_step: steps taken before, by the run that is resumed.
        project: that the service files it under.
        say: shows a line.
    """

    folder: Path
    run: str
    first_step: int
    project: str
    say: Callable[[str], object]


class Sink(Protocol):
    """Shows a run, from when it is made. Any exception gives it up."""

    def log(self, step: int, tags: Mapping[str, float]) -> None:
        """Show scalars of a step; steps never go down.

        Args:
            step: number of it.
            tags: by name, ``group/name``.
        """
        ...

    def show(self, step: int, pictures: Mapping[str, Path]) -> None:
        """Show pictures of a step, where the service has a place for them.

        Args:
            step: number of it.
            pictures: PNG files by their tags, ``group/name``.
        """
        ...

    def describe(self, config: Mapping[str, Any], command: str) -> None:
        """Show what the run was asked for.

        Args:
            config: the whole configuration, nested.
            command: as it was typed.
        """
        ...

    def close(self) -> None:
        """Flush and end."""
        ...
