"""Weights & Biases: a run of the same id after a resume, online or (``WANDB_MODE=offline``) not."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb

from clipfast.engine.sinks.sent import Sent
from clipfast.engine.sinks.sink import Started

# At the end of a run; what could not be sent by then stays on the disk for `wandb sync`.
_FINISH_SECONDS = 120.0


class Wandb:
    """See ``Sink``.

    The service takes no row of a step below the last one that it has. A run that goes on from a
    checkpoint sends what lies behind that step; the rows between are those of the attempt before.

    Args:
        started: the run.
    """

    def __init__(self, started: Started) -> None:
        settings: dict[str, Any] = {"console": "off", "silent": True}
        if "finish_timeout" in wandb.Settings.model_fields:
            settings["finish_timeout"] = _FINISH_SECONDS
        self._run = wandb.init(
            project=started.project,
            id=started.run or None,
            name=started.folder.name,
            dir=str(started.folder),
            resume="allow",
            settings=wandb.Settings(**settings),
        )
        self._sent = Sent(started.folder / "wandb" / "sent.json", started.run)
        if self._run.offline:
            started.say(f"wandb is offline. To send it: wandb sync {self._run.dir}/..")
        else:
            started.say(f"wandb: {self._run.url}")

    def log(self, step: int, tags: Mapping[str, float]) -> None:
        """See ``Sink``."""
        if self._sent.wants(step):
            self._run.log(dict(tags), step=step)

    def show(self, step: int, pictures: Mapping[str, Path]) -> None:
        """See ``Sink``."""
        if self._sent.wants(step):
            images = {tag: wandb.Image(str(path)) for tag, path in pictures.items()}
            self._run.log(images, step=step)

    def describe(self, config: Mapping[str, Any], command: str) -> None:
        """See ``Sink``."""
        self._run.config.update({**config, "command": command}, allow_val_change=True)

    def close(self) -> None:
        """See ``Sink``."""
        self._run.finish()
        self._sent.close()
