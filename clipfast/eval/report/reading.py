"""The results in a folder: clipfast's, and those that CLIP_benchmark wrote."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Folders that evaluations make beside their results; their JSON is none.
_NO_RESULTS = ("features", "classifiers", "examples")
_MOST_BYTES = 256 << 20


@dataclass(frozen=True, eq=False)
class Result:
    """What one file says.

    Attributes:
        path: of the file.
        dataset, model, pretrained, task, language: CLIP_benchmark's keys.
        metrics: those that are numbers; None: undefined.
        content: all of the file.
    """

    path: Path
    dataset: str
    model: str
    pretrained: str
    task: str
    language: str
    metrics: Mapping[str, float | None]
    content: Mapping[str, Any]


@dataclass(frozen=True)
class Odd:
    """What cannot be read.

    Attributes:
        path: of the file.
        why: for a person.
    """

    path: Path
    why: str


def read_results(folder: Path) -> tuple[list[Result], list[Odd]]:
    """All results below a folder, in the order of their paths.

    Args:
        folder: at any depth; ``features``, ``classifiers``, ``examples`` and hidden folders are
            passed over.

    Returns:
        Results, and the other JSON files there.

    Raises:
        ValueError: there is no such folder, or no result in it.
    """
    if not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is no folder: name the one that evaluations wrote to")
    results: list[Result] = []
    odd: list[Odd] = []
    for path in _files(folder):
        try:
            results.append(_result(path))
        except (ValueError, OSError, RecursionError) as error:
            odd.append(Odd(path, str(error) or type(error).__name__))
    if not results:
        more = f"; {len(odd)} JSON files are no results, such as {odd[0].path}" if odd else ""
        raise ValueError(f"there is no result in {str(folder)!r}{more}: run an evaluation first")
    return results, odd


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*.json")):
        above = path.relative_to(folder).parts[:-1]
        if not any(name in _NO_RESULTS or name.startswith(".") for name in above):
            yield path


def _result(path: Path) -> Result:
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"it is larger than {_MOST_BYTES >> 20} MB")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"it is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError("it holds no object")
    for key in ("dataset", "model", "task"):
        if not isinstance(content.get(key), str):
            raise ValueError(f"it has no text {key!r}")
    if not isinstance(content.get("metrics"), dict):
        raise ValueError("it has no object 'metrics'")
    return Result(
        path,
        content["dataset"],
        content["model"],
        str(content.get("pretrained") or ""),
        content["task"],
        str(content.get("language") or ""),
        {name: finite(value) for name, value in content["metrics"].items() if _is_number(value)},
        content,
    )


def finite(value: Any) -> float | None:
    """A number that can be drawn; None for all else."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))
