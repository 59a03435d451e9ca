"""Results on disk, in the form that scripts for CLIP_benchmark read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import clipfast
from clipfast.files import write_whole


@dataclass(frozen=True)
class ResultFile:
    """One result: a data set, a model and a task.

    Its file is ``<dataset>_<model>_<task>_<language>.json``.

    Attributes:
        folder: of results.
        dataset: name of the set.
        model: name of the model, such as "ViT-B/32".
        pretrained: what its weights were loaded from.
        task: such as "zeroshot_classification".
        language: of class names and prompts.
    """

    folder: Path
    dataset: str
    model: str
    pretrained: str
    task: str
    language: str = "en"

    @property
    def path(self) -> Path:
        """Where it is."""
        parts = (self.dataset, self.model, self.task, self.language)
        name = "_".join(re.sub(r"[/\\\s]+", "-", part) for part in parts)
        return self.folder / f"{name}.json"

    def existing(self) -> dict[str, Any] | None:
        """What is there already; None where nothing is.

        Raises:
            ValueError: the file is no result, or that of other weights.
        """
        if not self.path.exists():
            return None
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            pretrained = found["pretrained"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{self.path} is no result of an evaluation ({error}): move it away, or leave out "
                "--skip-existing"
            ) from error
        if pretrained != self.pretrained:
            raise ValueError(
                f"{self.path} is of the weights {pretrained!r}, not of {self.pretrained!r}: pass "
                "another --out, or leave out --skip-existing"
            )
        return found

    def write(self, metrics: Mapping[str, float | None], more: Mapping[str, Any]) -> dict[str, Any]:
        """Write it, whole or not at all.

        Args:
            metrics: by CLIP_benchmark's names where it has them. None: undefined.
            more: what stands beside CLIP_benchmark's keys.

        Returns:
            What was written.

        Raises:
            ValueError: a metric is not finite.
            OSError: it cannot be written.
        """
        odd = [name for name, value in metrics.items() if value and not math.isfinite(value)]
        if odd:
            raise ValueError(f"{self.dataset}: {odd[0]} is {metrics[odd[0]]}, which is no result")
        content = {
            "dataset": self.dataset,
            "model": self.model,
            "pretrained": self.pretrained,
            "task": self.task,
            "metrics": dict(metrics),
            "language": self.language,
            **more,
            "clipfast": clipfast.__version__,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False)
        write_whole(self.path, text.encode())
        # As it is read again: tuples are lists.
        return json.loads(text)
