"""How a checkpoint is saved: by all ranks, whole or not at all."""

import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from clipfast.checkpoint import Entry, Manifest
from clipfast.checkpoint.manifest import folder_name_of
from clipfast.engine.agreement import from_main
from clipfast.engine.checkpoint.folder import CheckpointFolder
from clipfast.engine.launch import Process
from clipfast.files import explain


class SaveFailed(OSError):
    """A checkpoint could not be saved; the run goes on. The message names path and free space."""

    @classmethod
    def of(cls, path: Path, errors: Mapping[int, OSError | None]) -> "SaveFailed":
        """What several ranks met.

        Args:
            path: of the checkpoint, under the name that it was written to.
            errors: by rank; None where there was none.
        """
        met = {rank: explain(error, path) for rank, error in errors.items() if error}
        return cls(
            f"no checkpoint was saved: {'; '.join(f'rank {r}: {text}' for r, text in met.items())}"
        )


class Saving:
    """Saves the checkpoints of a run. Every method that ranks share is a collective.

    A checkpoint is a folder ``stepNNNNNNNN`` that ranks fill under a hidden name. Its manifest is
    written after every rank has finished, then the folder is renamed: a run killed while saving
    resumes from the one before. The file system must be one that all ranks see.

    Args:
        folder: holds the checkpoints.
        process: this rank.
        layout: what a checkpoint must share with the run that loads it, such as the ZeRO stage.

    Attributes:
        size: bytes of the newest checkpoint, to look for room before the next.
    """

    def __init__(
        self, folder: CheckpointFolder, process: Process, layout: Mapping[str, int | str]
    ) -> None:
        self._folder = folder
        self._process = process
        self._layout = layout
        self.size = 0

    def save(self, engine: Any, step: int, state: Mapping[str, Any]) -> Path:
        """Save the whole state of a run on all ranks, then delete what is no longer kept.

        Args:
            engine: the DeepSpeed engine.
            step: optimizer steps taken.
            state: what else a run needs to go on; as JSON takes it.

        Returns:
            The checkpoint's folder.

        Raises:
            SaveFailed: on every rank, where one of them could not write. Earlier checkpoints are
                as they were.
        """
        partial = self._prepare(step)
        files = engine.checkpoint_engine
        files.begin()
        files.sync = self._folder.sync
        engine.save_checkpoint(str(partial.parent), tag=partial.name, save_latest=False)
        written = self._gather(files, partial)
        self._on_main(lambda: self._place(partial, step, state, written), partial)
        self.size = sum(entry.size for entry in written.values())
        return partial.with_name(folder_name_of(step))

    def _prepare(self, step: int) -> Path:
        # A rank of a killed run may still be writing: it must not meet this attempt's files.
        token = from_main(self._process, lambda: uuid.uuid4().hex[:8])
        partial = self._folder.path / f".{folder_name_of(step)}.{token}.partial"
        self._on_main(lambda: self._folder.prepare(partial, self.size), partial)
        return partial

    def _place(
        self, partial: Path, step: int, state: Mapping[str, Any], written: Mapping[str, Entry]
    ) -> None:
        counter = self._folder.next_counter()
        manifest = Manifest(self._folder.run, counter, step, self._layout, state, written)
        self._folder.place(partial, manifest)

    def _gather(self, files: Any, partial: Path) -> dict[str, Entry]:
        """The files that all ranks wrote.

        Raises:
            SaveFailed: on every rank, where one of them could not write.
        """
        shared: list[Any] = [None] * self._process.world_size
        dist.all_gather_object(shared, (files.written, files.error))
        errors = {rank: error for rank, (_, error) in enumerate(shared)}
        if any(errors.values()):
            raise self._given_up(partial, errors)
        return {name: entry for written, _ in shared for name, entry in written.items()}

    def _on_main(self, act: Callable[[], None], partial: Path) -> None:
        """Let rank 0 act, and all ranks know whether it could.

        Raises:
            SaveFailed: on every rank, where it could not.
        """
        try:
            from_main(self._process, act)
        except OSError as error:
            raise self._given_up(partial, {0: error}) from error

    def _given_up(self, partial: Path, errors: Mapping[int, OSError | None]) -> SaveFailed:
        # Before the bytes are given back, and would count as free.
        failed = SaveFailed.of(partial, errors)
        if self._process.is_main:
            shutil.rmtree(partial, ignore_errors=True)
        dist.barrier()
        return failed
