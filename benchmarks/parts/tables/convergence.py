"""The tables of ``docs/measured/convergence.md``."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from benchmarks.parts.common.harness import Row
from benchmarks.parts.common.rows import by_case
from benchmarks.parts.common.text import digits
from benchmarks.parts.convergence.compare import FIGURES, compare, groups_of
from benchmarks.parts.convergence.experiment import read
from benchmarks.parts.convergence.settings import OURS
from benchmarks.parts.tables.runs import NOT_MEASURED, markdown, ratio

TOLD = {
    "final_loss": "loss, last epoch",
    "noto": "trained artist",
    "twemoji": "other artist",
    "image_to_text": "image to text",
    "text_to_image": "text to image",
}
_FIRST = [figure for figure in FIGURES if figure.endswith("R@1")]


def convergence() -> str:
    """Every figure of both programs, and the interval of the difference."""
    groups = groups_of(read())
    ours, *others = groups or [""]
    if not others:
        return NOT_MEASURED
    tables = []
    for name in others:
        head = ["", f"{ours}, {len(groups[ours])} seeds", f"{name}, {len(groups[name])} seeds"]
        head += ["difference, 95% interval", "within seed variance"]
        lines = []
        for figure in FIGURES:
            found = compare(groups[ours], groups[name], figure)
            lines.append(
                [
                    _told(figure),
                    _mean(figure, found["mean"], found["deviation"]),
                    _mean(figure, found["other_mean"], found["other_deviation"]),
                    _interval(figure, found),
                    "yes" if found["is_same"] else "no",
                ]
            )
        tables.append(markdown(head, lines))
    return "\n\n".join(tables)


def convergence_seeds() -> str:
    """R@1 and loss of every training."""
    groups = groups_of(read())
    if not groups:
        return NOT_MEASURED
    head = ["", "seed", "steps", "loss, last epoch", *map(_told, _FIRST)]
    lines = []
    for name, rows in groups.items():
        for row in rows:
            figures = [f"{row['final_loss']:.4f}", *(f"{row[key]:.1%}" for key in _FIRST)]
            lines.append([name, str(row["seed"]), str(row["steps"]), *figures])
            name = ""
    return markdown(head, lines)


def convergence_time() -> str:
    """What a training took, by length and machine; medians of its seeds."""
    groups = by_case(sorted(read(), key=_length_of), _length_of).values()
    tables = [_time(chosen) for chosen in groups]
    return "\n\n".join(tables) or NOT_MEASURED


def _time(rows: Sequence[Row]) -> str:
    programs = by_case(sorted(rows, key=_is_other), lambda row: row["name"])
    first = rows[0]
    head = [f"{first['steps']} steps, {first['threads']} thread{'s'[: first['threads'] - 1]}"]
    for name, own in programs.items():
        head += [f"{name}, {len(own)} training{'s'[: len(own) - 1]}"]
        head += [] if name == OURS else ["faster"]
    kinds = {"processor": "cpu_seconds"}
    if first["machine"] == "quiet":
        # Where others work the clock says nothing.
        kinds["clock"] = "seconds"
    lines = []
    for told, key in kinds.items():
        for part, measure in _PARTS.items():
            found = {name: _median(own, key, measure) for name, own in programs.items()}
            cells = [f"{told}, {part}"]
            for name, value in found.items():
                cells.append(f"{digits(value)} s")
                cells += [] if name == OURS else [ratio(_apart(value, found.get(OURS)))]
            lines.append(cells)
    return markdown(head, lines)


_PARTS: dict[str, Callable[[Row, str], float]] = {
    "whole program": lambda row, key: row[key],
    "before the first step": lambda row, key: row[key] - row[f"train_{key}"],
    "all steps": lambda row, key: row[f"train_{key}"],
    "a step": lambda row, key: row[f"train_{key}"] / row["steps"],
}


def _length_of(row: Row) -> tuple[bool, int, int]:
    return row["machine"] == "shared", -row["epochs"], row["threads"]


def _apart(theirs: float, ours: float | None) -> float | None:
    return None if ours is None else theirs / ours


def _is_other(row: Row) -> tuple[bool, str]:
    return row["name"] != OURS, row["name"]


def _median(rows: Sequence[Row], key: str, measure: Callable[[Row, str], float]) -> float:
    return statistics.median(measure(row, key) for row in rows)


def _told(figure: str) -> str:
    if figure in TOLD:
        return TOLD[figure]
    _, gallery, direction, recall = figure.split("/")
    return f"{TOLD[gallery]}, {TOLD[direction]}, {recall}"


def _mean(figure: str, mean: float, deviation: float) -> str:
    if figure == "final_loss":
        return f"{mean:.3f} ± {deviation:.3f}"
    return f"{mean:.1%} ± {100 * deviation:.1f}"


def _interval(figure: str, found: Row) -> str:
    low, mean, high = (found[key] for key in ("low", "difference", "high"))
    if figure == "final_loss":
        return f"{mean:+.3f}, {low:+.3f} to {high:+.3f}"
    return f"{100 * mean:+.1f} points, {100 * low:+.1f} to {100 * high:+.1f}"
