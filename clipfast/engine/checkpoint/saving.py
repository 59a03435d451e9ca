"""How a checkpoint is saved: by all ranks, whole or not at all, at once or in the background."""

import copy
import shutil
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist

from clipfast.checkpoint import Entry, Manifest
from clipfast.checkpoint.manifest import FOR_GOOD, folder_name_of
from clipfast.engine import progress
from clipfast.engine.agreement import from_main
from clipfast.engine.checkpoint.folder import CheckpointFolder
from clipfast.engine.checkpoint.host_copies import HostCopies
from clipfast.engine.launch import Process
from clipfast.files import explain

# So long the watch is told that a rank that waits for its disk is alive.
_PATIENT_SECONDS = 600


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


@dataclass
class _UnderWay:
    """A save in the background.

    Attributes:
        number: of saves in the background, from 1.
        partial: the folder that is written.
        step: optimizer steps taken.
        state: what else a run needs.
        files: of this rank.
        work: what this rank's thread does: it writes the files, then puts the folder in place.
        written: the files of all ranks, once all have written theirs.
    """

    number: int
    partial: Path
    step: int
    state: Mapping[str, Any]
    files: Any
    work: "Future[None]"
    written: Mapping[str, Entry] = field(default_factory=dict)

    @property
    def milestone(self) -> int:
        """The next one: 2n - 1 where all have written the files of save n, 2n where it stands."""
        return 2 * self.number - (not self.written)


class Saving:
    """Saves the checkpoints of a run. Methods are collectives; attributes and ``close`` are not.

    A checkpoint is a folder ``stepNNNNNNNN`` that ranks fill under a hidden name. Its manifest is
    written after every rank has finished, then the folder is renamed: a run killed while saving
    resumes from the one before. The file system must be one that all ranks see.

    One save at a time is under way in the background.

    Args:
        folder: holds the checkpoints.
        process: this rank.
        layout: what a checkpoint must share with the run that loads it, such as the ZeRO stage.

    Attributes:
        size: bytes of the newest checkpoint, to look for room before the next.
        mine: the files of the newest that this rank wrote.
    """

    def __init__(
        self, folder: CheckpointFolder, process: Process, layout: Mapping[str, int | str]
    ) -> None:
        self._folder = folder
        self._process = process
        self._layout = layout
        self._copies = HostCopies()
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="clipfast-checkpoint")
        self._begun = 0
        self._under_way: _UnderWay | None = None
        self.size = 0
        self.mine: Mapping[str, Entry] = {}

    @property
    def step(self) -> int | None:
        """Of the save that is under way in the background."""
        return None if self._under_way is None else self._under_way.step

    @property
    def progress(self) -> int:
        """The milestones of saves in the background that this rank has passed."""
        save = self._under_way
        if save is None:
            return 2 * self._begun
        return save.milestone - (not save.work.done())

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
        try:
            files = self._patiently(self._fill, engine, partial, None)
            written = self._gather(files, partial)
            place = (self._place, partial, step, _whole(state, engine), written)
            self._on_main(lambda: self._patiently(*place), partial)
        except KeyboardInterrupt:
            engine.checkpoint_engine.give_up()
            raise
        return self._placed(partial, step, written, files)

    def begin(self, engine: Any, step: int, state: Mapping[str, Any]) -> None:
        """The same in the background: training may go on once this has returned.

        Raises:
            SaveFailed: on every rank, where it could not be begun.
        """
        assert self._under_way is None
        partial = self._prepare(step)
        files = self._fill(engine, partial, self._copies)
        self._begun += 1
        self._under_way = _UnderWay(
            self._begun,
            partial,
            step,
            copy.deepcopy(_whole(state, engine)),
            files,
            self._worker.submit(files.write_copies),
        )

    def advance(self, least: int) -> Path | None:
        """Take the save under way as far as it goes without waiting.

        Args:
            least: the smallest ``progress`` of any rank, the same on every rank.

        Returns:
            The checkpoint's folder, once it stands.

        Raises:
            SaveFailed: on every rank, where one of them could not write.
        """
        save = self._under_way
        return None if save is None or least < save.milestone else self._go_on(save)

    def finish(self) -> Path | None:
        """Wait for the save under way.

        Returns:
            The checkpoint's folder; None where there was no save.

        Raises:
            SaveFailed: on every rank, where one of them could not write.
        """
        path = None
        while self._under_way is not None:
            path = self._go_on(self._under_way)
        return path

    def close(self) -> None:
        """End the thread. What is not written by then is given up."""
        if self._under_way is not None:
            self._under_way.files.give_up()
        self._worker.shutdown()

    def _go_on(self, save: _UnderWay) -> Path | None:
        """To the next milestone of a save."""
        try:
            if not save.written:
                _wait_for(save.work)
                save.written = self._gather(save.files, save.partial)
                save.work = self._begin_to_place(save)
                return None
            self._on_main(lambda: _wait_for(save.work), save.partial)
        except SaveFailed:
            self._under_way = None
            raise
        self._under_way = None
        return self._placed(save.partial, save.step, save.written, save.files)

    def _patiently(self, act: Callable[..., Any], *arguments: Any) -> Any:
        """Let the thread act; the watch hears meanwhile that this rank is alive."""
        work = self._worker.submit(act, *arguments)
        _wait_for(work)
        return work.result()

    def _begin_to_place(self, save: _UnderWay) -> "Future[None]":
        if self._process.is_main:
            place = (save.partial, save.step, save.state, save.written)
            return self._worker.submit(self._place, *place)
        nothing: Future[None] = Future()
        nothing.set_result(None)
        return nothing

    def _prepare(self, step: int) -> Path:
        # A rank of a killed run may still be writing: it must not meet this attempt's files.
        token = from_main(self._process, lambda: uuid.uuid4().hex[:8])
        partial = self._folder.path / f".{folder_name_of(step)}.{token}.partial"
        self._on_main(lambda: self._folder.prepare(partial, self.size), partial)
        return partial

    def _fill(self, engine: Any, partial: Path, copies: HostCopies | None) -> Any:
        """Let every rank write its files, or copy what they are to hold."""
        files = engine.checkpoint_engine
        files.begin(sync=self._folder.sync, copies=copies)
        engine.save_checkpoint(str(partial.parent), tag=partial.name, save_latest=False)
        if copies is not None:
            files.copy()
        return files

    def _place(
        self, partial: Path, step: int, state: Mapping[str, Any], written: Mapping[str, Entry]
    ) -> None:
        if self._folder.stays(step):
            state = {**state, FOR_GOOD: True}
        counter = self._folder.next_counter()
        manifest = Manifest(self._folder.run, counter, step, self._layout, state, written)
        self._folder.place(partial, manifest)

    def _placed(self, partial: Path, step: int, written: Mapping[str, Entry], files: Any) -> Path:
        self.mine = dict(files.written)
        self.size = sum(entry.size for entry in written.values())
        return partial.with_name(folder_name_of(step))

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


def _wait_for(work: "Future[Any]") -> None:
    """What a thread does; its error is raised here."""
    for _ in range(_PATIENT_SECONDS):
        if wait([work], timeout=1).done:
            break
        progress.again()
    work.result()


def _whole(state: Mapping[str, Any], engine: Any) -> dict[str, Any]:
    """With what the engine has beside its tensors."""
    return {**state, "engine": engine.contents.state()}
