"""Trackio: a local database, or a Space where ``TRACKIO_SPACE_ID`` names one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import trackio

from clipfast.engine.sinks.sent import Sent
from clipfast.engine.sinks.sink import Started


class Trackio:
    """See ``Sink``. A run that goes on keeps what was sent, and adds what lies behind it.

    Args:
        started: the run.
    """

    def __init__(self, started: Started) -> None:
        # It knows runs by their names alone.
        name = f"{started.folder.name} {started.run}".strip()
        self._run = trackio.init(
            project=started.project,
            name=name,
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        self._sent = Sent(started.folder / "trackio.json", started.run)

    def log(self, step: int, tags: Mapping[str, float]) -> None:
        """See ``Sink``."""
        if self._sent.wants(step):
            self._run.log(dict(tags), step=step)

    def show(self, step: int, pictures: Mapping[str, Path]) -> None:
        """Numbers alone are sent: pictures stay in the run's folder."""

    def describe(self, config: Mapping[str, Any], command: str) -> None:
        """See ``Sink``."""
        self._run.config.update({**config, "command": command})

    def close(self) -> None:
        """See ``Sink``."""
        self._run.finish()
        self._sent.close()
