"""TensorBoard's event files, in the run's folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from clipfast.engine.sinks.sink import Started


class TensorBoard:
    """See ``Sink``. Events after the checkpoint that a run goes on from are purged.

    Args:
        started: the run.
    """

    def __init__(self, started: Started) -> None:
        self._writer = SummaryWriter(str(started.folder), purge_step=started.first_step + 1)

    def log(self, step: int, tags: Mapping[str, float]) -> None:
        """See ``Sink``."""
        for tag, value in tags.items():
            self._writer.add_scalar(tag, value, step)

    def show(self, step: int, pictures: Mapping[str, Path]) -> None:
        """See ``Sink``."""
        for tag, path in pictures.items():
            with Image.open(path) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            self._writer.add_image(tag, pixels, step, dataformats="HWC")

    def describe(self, config: Mapping[str, Any], command: str) -> None:
        """See ``Sink``."""
        self._text("run/config", json.dumps(config, indent=1))
        self._text("run/command", command)

    def close(self) -> None:
        """See ``Sink``."""
        self._writer.close()

    def _text(self, tag: str, text: str) -> None:
        # Markdown: indented, it stays as it is.
        lines = "\n".join("    " + line for line in text.splitlines())
        self._writer.add_text(tag, lines, 0)
