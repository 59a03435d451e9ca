"""The checkpoints of one run, as the rest of the engine knows them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipfast.engine.agreement import from_main
from clipfast.engine.checkpoint.choosing import Choosing, Chosen, reached
from clipfast.engine.checkpoint.folder import CheckpointFolder
from clipfast.engine.checkpoint.saving import Saving
from clipfast.engine.checkpoint.store import CheckpointStore
from clipfast.engine.launch import Process


class Checkpoints:
    """The checkpoints of one run. Every method but ``latest`` is a collective.

    Args:
        folder: holds them.
        keep: how many stay, the newest.
        process: this rank.
        layout: what a checkpoint must share with the run that loads it, such as the ZeRO stage.
        run: id of the run; empty takes the checkpoints of any.
        keep_every: those whose step is a multiple of it stay too; 0: none.
        sync: wait until what is saved is on the disk.
        store: the run's folder in a store; None: it has none.
        scratch: where a checkpoint of another run is fetched to, out of a store.

    Attributes:
        folder: holds them.
        saving: writes them.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        process: Process,
        layout: dict[str, int | str],
        *,
        run: str = "",
        keep_every: int = 0,
        sync: bool = True,
        store: CheckpointStore | None = None,
        scratch: Path | None = None,
    ) -> None:
        self.layout = layout
        self._process = process
        self._store = store
        self.folder = CheckpointFolder(folder, run=run, keep=keep, keep_every=keep_every, sync=sync)
        self._choosing = Choosing(self.folder, process, layout, store, scratch)
        self.saving = Saving(self.folder, process, layout)

    def latest(self) -> Path | None:
        """The newest, as far as its manifest tells."""
        return self.folder.latest()

    def choose(self, which: str) -> Chosen | None:
        """Find a checkpoint and verify it; see ``Choosing.choose``.

        Args:
            which: ``latest``, or the path of a checkpoint.
        """
        return self._choosing.choose(which)

    def load(self, engine: Any, chosen: Chosen) -> list[str]:
        """Load a checkpoint into the engine; see ``Choosing.load``.

        Args:
            engine: the DeepSpeed engine.
            chosen: of ``choose``.
        """
        self.saving.size = chosen.manifest.size
        return self._choosing.load(engine, chosen)

    def differing(self, chosen: Chosen) -> list[str]:
        """What the run that saved had otherwise and carries over; see ``Choosing.differing``.

        Args:
            chosen: of ``choose``.
        """
        return self._choosing.differing(chosen)

    def save(self, engine: Any, step: int, state: Mapping[str, Any]) -> Path:
        """Save the whole state of a run; see ``Saving.save``.

        Args:
            engine: the DeepSpeed engine.
            step: optimizer steps taken.
            state: what else a run needs to go on; as JSON takes it.
        """
        return self.saving.save(engine, step, state)

    def tidy(self) -> None:
        """Finish or remove what a killed run left half done."""
        from_main(self._process, self.folder.tidy)

    def rewind(self, chosen: Chosen) -> list[str]:
        """Put aside what is newer than a checkpoint that the run goes back to.

        Args:
            chosen: of ``choose``.

        Returns:
            Lines for a person.
        """
        counter = chosen.manifest.counter

        def rewind() -> list[str]:
            there = self._store.supersede(counter) if self._store is not None else []
            return [*self.folder.supersede(counter), *there]

        return from_main(self._process, lambda: reached(str(chosen.path), lambda _: rewind()))
