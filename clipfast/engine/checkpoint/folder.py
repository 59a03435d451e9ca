"""The folder of a run's checkpoints: what is put in place, put aside and deleted there.

Nothing here is a collective: rank 0 acts alone.
"""

import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path

from clipfast.checkpoint import Found, Manifest, find, look
from clipfast.checkpoint.manifest import FOR_GOOD, NAME, folder_name_of
from clipfast.files import explain, sync_path, write_whole


class CheckpointFolder:
    """``RUN/checkpoints``.

    Args:
        path: of the folder; it need not exist.
        run: id of the run; empty takes the checkpoints of any.
        keep: how many stay, the newest.
        keep_every: those whose step is a multiple of it stay too; 0: none.
        sync: wait until what is put in place is on the disk.

    Attributes:
        held: checkpoints that somebody reads; they are not deleted now.
    """

    def __init__(
        self,
        path: Path,
        *,
        run: str = "",
        keep: int = 1,
        keep_every: int = 0,
        sync: bool = True,
    ) -> None:
        self.path = path
        self.run = run
        self.keep = keep
        self.keep_every = keep_every
        self.sync = sync
        self.held: set[Path] = set()

    def latest(self) -> Path | None:
        """The newest, as far as its manifest tells."""
        return next((f.path for f in reversed(find(self.path)) if f.manifest), None)

    def foreign(self, found: Found) -> str:
        """Why a checkpoint is none of this run's; empty where it is."""
        assert found.manifest is not None
        if not self.run or not found.manifest.run or found.manifest.run == self.run:
            return ""
        return (
            f"{found.path} was saved by run {found.manifest.run}, this is run {self.run}: a run of "
            "another name can branch off from it (--resume PATH)"
        )

    def tidy(self) -> None:
        """Finish or remove what a killed run left half done."""
        # What is whole under a new attempt's name comes before what it was to replace.
        for path in sorted(self.path.glob(".step*"), key=lambda p: p.suffix != ".partial"):
            final = self.path / path.name.split(".")[1]
            whole = path.suffix in (".partial", ".replaced")
            if whole and not final.exists() and (found := look(path)) and found.manifest:
                path.rename(final)
            else:
                shutil.rmtree(path, ignore_errors=True)

    def supersede(self, counter: int) -> list[str]:
        """Put aside what is newer than a checkpoint that the run goes back to.

        Args:
            counter: of that checkpoint.

        Returns:
            Lines for a person.
        """
        newer = [
            found.path
            for found in find(self.path)
            if found.manifest and found.manifest.counter > counter
        ]
        return [put_aside(path, "superseded") for path in newer]

    def prepare(self, partial: Path, size: int) -> None:
        """Make a hidden folder to save into.

        Args:
            partial: of this folder, and new.
            size: bytes to find room for.

        Raises:
            OSError: it cannot be made, or there is no room.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self.tidy()
        free = shutil.disk_usage(self.path).free
        if free < size:
            raise OSError(
                errno.ENOSPC,
                f"{os.strerror(errno.ENOSPC)}: the last checkpoint had {size / 1e9:.2f} GB",
                str(self.path),
            )
        partial.mkdir()

    def place(self, partial: Path, manifest: Manifest) -> None:
        """Write the manifest and put a checkpoint in place, then delete what is no longer kept.

        Args:
            partial: of ``prepare``; the files are in it.
            manifest: of the checkpoint.

        Raises:
            OSError: it cannot be written.
        """
        path = self.path / folder_name_of(manifest.step)
        if self.sync:
            # The folders may be new, and the system may not have written their names yet.
            for folder in (partial, self.path, self.path.parent, self.path.parent.parent):
                sync_path(folder)
        manifest.write(partial, sync=self.sync)
        replaced = self.path / f".{path.name}.replaced"
        there = look(path)
        if there and there.manifest and self.foreign(there):
            put_aside(path, there.manifest.run)
        elif path.exists():
            path.rename(replaced)
        partial.rename(path)
        if self.sync:
            sync_path(self.path)
        shutil.rmtree(replaced, ignore_errors=True)
        self._delete_all_but(path)

    def bring(self, partial: Path, name: str, data: bytes) -> Path:
        """Put a checkpoint in place that was fetched whole, with the manifest that it has there.

        Args:
            partial: of ``prepare``; the files are in it.
            name: that it gets.
            data: the manifest's bytes.

        Returns:
            Its folder.

        Raises:
            OSError: it cannot be written.
        """
        path = self.path / name
        if self.sync:
            for folder in (partial, self.path, self.path.parent, self.path.parent.parent):
                sync_path(folder)
        write_whole(partial / NAME, data, sync=self.sync)
        if path.exists():
            put_aside(path)
        partial.rename(path)
        if self.sync:
            sync_path(self.path)
        return path

    def delete_surplus(self) -> None:
        """Delete what is no longer kept, and was held when its time came."""
        newest = self.latest()
        if newest is not None:
            self._delete_all_but(newest)

    def next_counter(self) -> int:
        """Of the checkpoint that is saved next."""
        return 1 + max((f.manifest.counter for f in find(self.path) if f.manifest), default=-1)

    def stays(self, step: int) -> bool:
        """Whether the checkpoint after a step is kept for good."""
        return self.keep_every > 0 and step % self.keep_every == 0

    def _delete_all_but(self, newest: Path) -> None:
        others = [
            found
            for found in find(self.path)
            # Another run's are not ours, and what is damaged is no checkpoint to count on.
            if found.path != newest and found.manifest and not self.foreign(found)
        ]
        # The newest last; one place is taken by what was just saved.
        surplus = others[: max(0, len(others) - (self.keep - 1))]
        for old in [f.path for f in surplus if f.manifest and not self._is_for_good(f.manifest)]:
            if old in self.held:
                continue
            # Under another name a half-deleted folder is no checkpoint.
            hidden = old.with_name(f".{old.name}.deleted")
            with suppress(OSError):
                old.rename(hidden)
                shutil.rmtree(hidden)

    def _is_for_good(self, manifest: Manifest) -> bool:
        # A start without the option, or with another number, deletes none that were promised.
        return manifest.state.get(FOR_GOOD) is True or self.stays(manifest.step)


def put_aside(path: Path, why: str = "damaged") -> str:
    """Rename a checkpoint so that it no longer counts.

    Args:
        path: of its folder.
        why: a word for its new name.

    Returns:
        A line for a person.
    """
    for number in range(1000):
        kept = path.with_name(f"{path.name}.{why}{f'.{number}' if number else ''}")
        if not kept.exists():
            try:
                path.rename(kept)
            except OSError as error:
                return explain(error, path)
            return f"{path.name} is kept as {kept.name}"
    return f"{path} stays where it is"
