"""All trainings that are asked for, one after the other, each row written as it comes."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from benchmarks.parts.common import rows as files
from benchmarks.parts.common.harness import CheckFailed, Row
from benchmarks.parts.convergence.evaluate import recalls_by_open_clip
from benchmarks.parts.convergence.requirements import require_packages
from benchmarks.parts.convergence.settings import THEIRS, TRAINED_ON, Settings
from benchmarks.parts.convergence.shards import write_shards
from benchmarks.parts.convergence.train import name_of, train
from clipfast.env import stamp

SUBJECT = "convergence"
ROWS = files.RESULTS / f"{SUBJECT}.jsonl"
# Two evaluations of one file differ by how they resize, and by what they count: clipfast takes
# equal pictures for one, 14 of 1,911 in the one gallery and 33 in the other.
MOST_APART = 0.02


def run(
    wanted: Sequence[Settings],
    folder: Path,
    *,
    quiet: bool = False,
    packages: Path | None = None,
    path: Path = ROWS,
) -> list[Row]:
    """Train whatever has no row yet.

    Args:
        wanted: Trainings, in this order.
        folder: For shards and what programs write. A training that was cut short begins anew.
        quiet: Nothing else runs on the machine, so that the wall clock counts.
        packages: See :func:`train.train`.
        path: File of the rows; what is there stays.

    Returns:
        Every row of the file, the new ones too.

    Raises:
        ImportError: A package of OpenCLIP's script is missing.
        CheckFailed: OpenCLIP's own evaluation of a first seed differs by :data:`MOST_APART`.
    """
    done = {key_of(row) for row in read(path)}
    missing = [settings for settings in wanted if key_of(_key_row(settings, quiet)) not in done]
    if any(settings.contender.program == THEIRS for settings in missing):
        require_packages(packages)
    if missing:
        shards = write_shards(TRAINED_ON, folder / "shards")
    with tqdm(missing, unit=" runs", leave=False) as bar:
        for settings in bar:
            name = f"{name_of(settings)}, seed {settings.seed}"
            bar.set_description(name)
            place = folder / f"{settings.key}-{settings.seed}"
            shutil.rmtree(place, ignore_errors=True)
            row = {**train(settings, shards, place, packages), "machine": _machine(quiet)}
            if settings.seed == 0:
                row["by_open_clip"] = _check(row, settings, place)
            files.append_rows(path, files.stamped(SUBJECT, [row], stamp()))
            bar.write(
                f"{name}: loss {row['final_loss']:.4f}, {row['seconds']:.0f} s, of the processor "
                f"{row['cpu_seconds']:.0f} s"
            )
            # The optimizer's state lies in it too.
            shutil.rmtree(place)
    return read(path)


def read(path: Path = ROWS) -> list[Row]:
    """The rows of a file; none where there is no file."""
    return files.read_file(path) if path.exists() else []


def key_of(row: Row) -> tuple[str, int, int, int, str]:
    """What tells trainings apart."""
    return row["name"], row["seed"], row["epochs"], row["threads"], row["machine"]


def _machine(quiet: bool) -> str:
    return "quiet" if quiet else "shared"


def _key_row(settings: Settings, quiet: bool) -> Row:
    return {
        "name": name_of(settings),
        "seed": settings.seed,
        "epochs": settings.epochs,
        "threads": settings.threads,
        "machine": _machine(quiet),
    }


def _check(row: Row, settings: Settings, place: Path) -> dict[str, float]:
    found = recalls_by_open_clip(settings.weights(place), settings.contender.context_length)
    for name, theirs in found.items():
        if abs(theirs - row[name]) > MOST_APART:
            raise CheckFailed(
                f"{row['name']}, seed {row['seed']}: {name} is {row[name]:.4f} by clipfast's "
                f"evaluation and {theirs:.4f} by OpenCLIP's"
            )
    return found
