"""A run's folder in a store: the checkpoints that are whole there, and which of them stay.

A checkpoint there is a folder with the same files as here. ``manifest.json`` is written last and
deleted first, so that a folder without one is what an upload left half done. Nothing here is a
collective.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipfast.checkpoint import Damaged, Found, Manifest
from clipfast.checkpoint.manifest import FOR_GOOD, LARGEST, NAME
from clipfast.engine.config import ConfigError
from clipfast.storage import Stat, storage_of
from clipfast.storage.paths import join, split, tidy

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Stored:
    """A checkpoint in a store.

    Attributes:
        path: of its folder.
        manifest: None where it cannot be what was written.
        data: the manifest's bytes.
        damage: what is wrong with it; empty where nothing is known to be.
    """

    path: str
    manifest: Manifest | None
    data: bytes = b""
    damage: str = ""

    @property
    def name(self) -> str:
        """Of its folder."""
        return split(self.path)[1]


def look_in_store(path: str) -> Stored | None:
    """One checkpoint.

    Args:
        path: of its folder.

    Returns:
        None where no finished upload left one.

    Raises:
        OSError: the store does not answer, or says no.
    """
    path = tidy(path)
    marker, storage = join(path, NAME), storage_of(path)
    try:
        size = storage.size(marker)
        if size > LARGEST:
            return Stored(
                path, None, damage=f"{marker} has {size:,} bytes: no manifest is so large"
            )
        data = storage.read_at(marker, 0, size)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return Stored(path, Manifest.parse(data, marker, split(path)[1]), data)
    except Damaged as error:
        return Stored(path, None, data, str(error))


def merged(here: Sequence[Found], there: Sequence[Stored]) -> list[Found | Stored]:
    """Checkpoints of a folder and of a store in the order in which a resume tries them.

    Args:
        here: the newest first.
        there: the newest last.

    Returns:
        By counter; what is here comes before what is there.
    """
    found: list[Found | Stored] = list(here)
    for stored in reversed(there):
        mine = -1 if stored.manifest is None else stored.manifest.counter
        behind = (i for i, f in enumerate(found) if f.manifest and f.manifest.counter < mine)
        found.insert(next(behind, len(found)), stored)
    return found


class CheckpointStore:
    """``UPLOAD/NAME``. Rank 0 alone looks into it and changes it; other ranks write files into it.

    Args:
        folder: of the run, in any writable storage.
        keep: how many checkpoints stay, the newest.
        keep_every: those whose step is a multiple of it stay too; 0: none.

    Attributes:
        run: id of the run, once it is known; what belongs to another one is left alone.
    """

    def __init__(self, folder: str, *, keep: int = 1, keep_every: int = 0) -> None:
        self.folder = tidy(storage_of(folder).resolve(folder))
        self.checkpoints = join(self.folder, CHECKPOINTS)
        self.run = ""
        self._keep = keep
        self._keep_every = keep_every
        self._known: dict[str, tuple[Stat, Stored]] = {}
        self._mine: set[str] = set()

    def holds(self, path: str) -> bool:
        """Whether this is the path of one of this run's checkpoints there."""
        storage, above = storage_of(path), split(tidy(path))[0]
        return storage.identity(storage.resolve(above)) == storage.identity(self.checkpoints)

    def require_writable(self) -> None:
        """Fail early where nothing can be written.

        Raises:
            OSError: with the reason.
        """
        storage = storage_of(self.folder)
        storage.make_folder(self.folder)
        storage.check_writable(self.folder)

    def has(self, path: Path) -> bool:
        """Whether a checkpoint of this machine is there; no where the store does not say."""
        try:
            there = look_in_store(join(self.checkpoints, path.name))
            return there is not None and there.data == (path / NAME).read_bytes()
        except OSError:
            return False

    def find(self) -> list[Stored]:
        """Those that are whole, as far as their manifests tell, the newest last.

        Raises:
            OSError: the store does not answer, or says no.
        """
        found = [stored for name in self._folders() if (stored := self._look(name))]
        return sorted(found, key=_age)

    def require_own(self, found: Sequence[Stored]) -> None:
        """Whether what is there is this run's.

        Args:
            found: of ``find``.

        Raises:
            ConfigError: it is another run's.
        """
        others = {f.manifest.run for f in found if f.manifest and f.manifest.run != self.run}
        if others:
            raise ConfigError(
                f"--checkpoint.upload: {self.folder} has checkpoints of run {min(others)}, this is "
                f"run {self.run}. --resume latest goes on with the one that is there. A new run "
                "needs a place of its own: another --logging.name, or another --checkpoint.upload"
            )

    def complete(self, name: str, data: bytes) -> None:
        """Put the manifest of a checkpoint in place, whose files are there, and delete those that
        are no longer kept.

        Args:
            name: of its folder.
            data: the manifest's bytes.

        Raises:
            ConfigError: another run, or another start of this one, writes there.
            OSError: the store does not answer, or says no.
        """
        self.require_alone(name, data)
        path = join(self.checkpoints, name)
        storage_of(path).write_atomic(join(path, NAME), data)
        self._mine.add(name)
        self._delete_all_but(name)

    def require_alone(self, name: str, data: bytes) -> None:
        """Whether nobody else has written there what is as new as a checkpoint of this run.

        Args:
            name: of the checkpoint's folder.
            data: its manifest's bytes.

        Raises:
            ConfigError: somebody has.
            OSError: the store does not answer, or says no.
        """
        found = self.find()
        self.require_own(found)
        counter = Manifest.parse(data, name, name).counter
        for stored in found:
            newer = stored.manifest is not None and stored.manifest.counter >= counter
            if newer and stored.name not in self._mine and stored.data != data:
                raise ConfigError(
                    f"{stored.path} is newer and was not saved here: another start of this run is "
                    "alive. Stop one of the two"
                )

    def supersede(self, counter: int) -> list[str]:
        """Put aside what is newer than a checkpoint that the run goes back to.

        Args:
            counter: of that checkpoint.

        Returns:
            Lines for a person.

        Raises:
            OSError: the store does not answer, or says no.
        """
        found = self.find()
        self.require_own(found)
        newer = [f for f in found if f.manifest and f.manifest.counter > counter]
        return [self.put_aside(stored, "superseded") for stored in newer]

    def put_aside(self, stored: Stored, why: str = "damaged") -> str:
        """Give a checkpoint's manifest another name, so that it no longer counts.

        Args:
            stored: of this run.
            why: a word for the new name.

        Returns:
            A line for a person.

        Raises:
            OSError: the store does not answer, or says no.
        """
        storage, kept = storage_of(stored.path), f"manifest.{why}.json"
        storage.write_atomic(join(stored.path, kept), stored.data)
        storage.remove(join(stored.path, NAME))
        self._known.pop(stored.name, None)
        return f"{stored.path} no longer counts: its manifest is {kept}"

    def _folders(self) -> list[str]:
        listed = storage_of(self.checkpoints).list(self.checkpoints)
        return [each.name for each in listed if each.is_folder and each.name.startswith("step")]

    def _look(self, name: str) -> Stored | None:
        path = join(self.checkpoints, name)
        try:
            stat = storage_of(path).stat(join(path, NAME))
        except (FileNotFoundError, NotADirectoryError):
            self._known.pop(name, None)
            return None
        known = self._known.get(name)
        # A long run keeps many for good; each manifest is read once.
        if known is not None and not known[0].differs(stat):
            return known[1]
        stored = look_in_store(path)
        if stored is not None:
            self._known[name] = (stat, stored)
        return stored

    def _delete_all_but(self, newest: str) -> None:
        found = self.find()
        whole = {stored.name for stored in found}
        others = [f for f in found if f.manifest and f.name != newest]
        surplus = others[: max(0, len(others) - (self._keep - 1))]
        for stored in surplus:
            assert stored.manifest is not None
            if not self._is_for_good(stored.manifest):
                self._delete(stored.name)
        for name in self._folders():
            # What an upload left half done: this run sends one checkpoint at a time, in order.
            if name not in whole and name < newest and not self._is_aside(name):
                self._delete(name)

    def _is_aside(self, name: str) -> bool:
        listed = storage_of(self.checkpoints).list(join(self.checkpoints, name))
        return any(each.name.startswith("manifest.") for each in listed)

    def _delete(self, name: str) -> None:
        path = join(self.checkpoints, name)
        storage = storage_of(path)
        # A reader never takes a half-deleted one for a checkpoint.
        storage.remove(join(path, NAME))
        self._known.pop(name, None)
        for each in storage.list(path):
            storage.remove(join(path, each.name))
        storage.remove_folder(path)

    def _is_for_good(self, manifest: Manifest) -> bool:
        if manifest.state.get(FOR_GOOD) is True:
            return True
        return self._keep_every > 0 and manifest.step % self._keep_every == 0


def _age(stored: Stored) -> tuple[Any, ...]:
    # One that cannot be read stands before all others: it is tried last.
    return (-1 if stored.manifest is None else stored.manifest.counter, stored.name)
