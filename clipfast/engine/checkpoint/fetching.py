"""How a checkpoint comes out of a store: all ranks fetch, and it stands whole or not at all."""

import shutil
import time
import uuid
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch.distributed as dist

from clipfast.checkpoint import Entry, Found, Manifest, Problem, look
from clipfast.engine import progress
from clipfast.engine.agreement import from_main
from clipfast.engine.checkpoint.folder import CheckpointFolder
from clipfast.engine.checkpoint.store import Stored
from clipfast.engine.config import ConfigError
from clipfast.engine.launch import Process
from clipfast.files import explain
from clipfast.storage.paths import join
from clipfast.storage.transfer import bring

# Files of a rank that come at a time; many ranges of each are under way.
_FILES = 4
# A file that came wrong is fetched once more: it may have been the way, and not the store.
_TRIES = 2


def fetch(
    stored: Stored, folder: CheckpointFolder, process: Process
) -> tuple[Found | None, list[Problem], str]:
    """Fetch a checkpoint into a folder that all ranks see. A collective.

    The ranks share the files. Each is compared with the manifest as it comes.

    Args:
        stored: with its manifest.
        folder: where it gets its own name; one that is there is put aside.
        process: this rank.

    Returns:
        What stands here then, None where it is damaged there; what is damaged; a line for a person.

    Raises:
        ConfigError: the store does not answer, or nothing can be written here.
    """
    manifest = stored.manifest
    assert manifest is not None
    began = time.monotonic()
    try:
        partial = from_main(process, lambda: _prepare(stored, manifest, folder))
    except OSError as error:
        raise ConfigError(f"--resume {stored.path}: {explain(error, folder.path)}") from error
    by_size = sorted(manifest.files, key=lambda name: -manifest.files[name].size)
    mine = by_size[process.rank :: process.world_size]
    shared: list[Any] = [None] * process.world_size
    dist.all_gather_object(shared, _bring_all(stored, manifest, partial, mine))
    problems = [problem for found, _ in shared for problem in found]
    errors = [error for _, error in shared if error]
    if problems or errors:
        from_main(process, lambda: shutil.rmtree(partial, ignore_errors=True))
    if errors:
        raise ConfigError(f"--resume: {stored.path} cannot be fetched: {'; '.join(errors)}")
    if problems:
        return None, problems, ""
    try:
        path = from_main(process, lambda: folder.bring(partial, stored.name, stored.data))
    except OSError as error:
        raise ConfigError(f"--resume {stored.path}: {explain(error, folder.path)}") from error
    seconds = time.monotonic() - began
    line = f"Fetched {stored.path}: {manifest.size / 1e9:.3f} GB in {seconds:.1f} s"
    return from_main(process, lambda: look(path)), [], line


def _prepare(stored: Stored, manifest: Manifest, folder: CheckpointFolder) -> Path:
    partial = folder.path / f".{stored.name}.{uuid.uuid4().hex[:8]}.partial"
    folder.prepare(partial, manifest.size)
    return partial


def _bring_all(
    stored: Stored, manifest: Manifest, partial: Path, names: list[str]
) -> tuple[list[Problem], str]:
    """What is damaged there, and why the rest could not be fetched."""
    problems: list[Problem] = []
    with ThreadPoolExecutor(_FILES, "clipfast-fetch") as pool:
        work = [
            pool.submit(_bring, join(stored.path, name), partial / name, manifest.files[name])
            for name in names
        ]
        while wait(work, timeout=1).not_done:
            progress.again()
    for future in work:
        try:
            problems += [problem for problem in [future.result()] if problem]
        except (OSError, ValueError) as error:
            return [], str(error)
    return problems, ""


def _bring(there: str, here: Path, entry: Entry) -> Problem | None:
    found = None
    for _ in range(_TRIES):
        try:
            bring(there, here, entry.size, entry.sha256)
            return None
        except FileNotFoundError:
            return Problem(f"{there} is missing")
        except ValueError as error:
            found = Problem(str(error))
    return found
