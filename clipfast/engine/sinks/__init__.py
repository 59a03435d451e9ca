"""Services beside ``metrics.jsonl`` that show a run's rows, each in a file of its own.

A sink that fails is given up: a line says so once, the run goes on, and ``metrics.jsonl`` has
everything.
"""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from clipfast.engine.config import ConfigError, LoggingConfig
from clipfast.engine.sinks.sink import Sink, Started

__all__ = ["Sinks", "Started", "require_packages"]


def _tensorboard(started: Started) -> Sink:
    from clipfast.engine.sinks.tensorboard import TensorBoard

    return TensorBoard(started)


def _wandb(started: Started) -> Sink:
    from clipfast.engine.sinks.wandb import Wandb

    return Wandb(started)


def _trackio(started: Started) -> Sink:
    from clipfast.engine.sinks.trackio import Trackio

    return Trackio(started)


# Field of LoggingConfig, which is also the package -> what is said of it, and how it is made.
_SINKS: dict[str, tuple[str, Callable[[Started], Sink]]] = {
    "tensorboard": ("TensorBoard", _tensorboard),
    "wandb": ("Weights & Biases", _wandb),
    "trackio": ("Trackio", _trackio),
}


def require_packages(config: LoggingConfig) -> None:
    """Refuse at the start what could not be written later.

    Raises:
        ConfigError: a package is missing, with the command that installs it.
    """
    for field in _wanted(config):
        if find_spec(field) is None:
            without = f"--logging.no-{field}" if field == "tensorboard" else f"no --logging.{field}"
            raise ConfigError(
                f"--logging.{field}: the package {field} is not installed. pip install {field}, "
                f"or pass {without}"
            )


class Sinks:
    """All that a run's options ask for.

    Args:
        config: of the run.
        folder: of the run.
        run: id of the run.
        first_step: steps taken before, by the run that is resumed.
        say: shows a line.
    """

    def __init__(
        self,
        config: LoggingConfig,
        folder: Path,
        run: str,
        first_step: int,
        say: Callable[[str], object],
    ) -> None:
        self._say = say
        self._sinks: dict[str, Sink] = {}
        for field in _wanted(config):
            name, make = _SINKS[field]
            asked = getattr(config, field)
            project = asked if isinstance(asked, str) else ""
            started = Started(folder, run, first_step, project, say)
            try:
                self._sinks[name] = make(started)
            except Exception as error:  # whatever a service or its package gives
                self._give_up(name, error)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See ``Sink``."""
        tags = {name if "/" in name else f"train/{name}": value for name, value in values.items()}
        self._each(lambda sink: sink.log(step, tags))

    def show(self, step: int, pictures: Mapping[str, Path]) -> None:
        """See ``Sink``."""
        self._each(lambda sink: sink.show(step, pictures))

    def describe(self, config: Mapping[str, Any], command: str) -> None:
        """See ``Sink``."""
        self._each(lambda sink: sink.describe(config, command))

    def close(self) -> None:
        """See ``Sink``; a second call does nothing."""
        self._each(lambda sink: sink.close())
        self._sinks = {}

    def _each(self, act: Callable[[Sink], None]) -> None:
        for name, sink in list(self._sinks.items()):
            try:
                act(sink)
            except Exception as error:  # TensorBoard's writer thread hands on what the disk gave it
                self._give_up(name, error)

    def _give_up(self, name: str, error: Exception) -> None:
        self._sinks.pop(name, None)
        self._say(f"{name} is no longer written: {error}. metrics.jsonl has everything")


def _wanted(config: LoggingConfig) -> list[str]:
    return [field for field in _SINKS if getattr(config, field)]
