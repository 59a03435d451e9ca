"""How a run begins: it takes its folder, finds what to go on from, and is written down."""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist
from torch import nn

from clipfast.checkpoint import find
from clipfast.engine.agreement import from_main
from clipfast.engine.checkpoint import LATEST, Checkpoints, Chosen
from clipfast.engine.checkpoint.choosing import reached
from clipfast.engine.checkpoint.store import CheckpointStore
from clipfast.engine.config import CheckpointConfig, ConfigError
from clipfast.engine.differences import differences, plain, refuse_changes
from clipfast.engine.plan import RunPlan
from clipfast.engine.runfolder import METRICS, RECORD, RunFolder
from clipfast.engine.startlog import tell
from clipfast.engine.state_bytes import saved_bytes
from clipfast.env import stamp
from clipfast.files import free_bytes, write_whole
from clipfast.storage import storage_of
from clipfast.storage.failures import UnreachableError
from clipfast.storage.nearby import is_elsewhere
from clipfast.storage.paths import join

_COUNTS = {1: "one", 2: "two", 3: "three"}


class Opening:
    """A run's folder and its checkpoints, held by this run until ``close``. A collective.

    Args:
        plan: of the run.

    Attributes:
        run_id: of the run, on every rank.
        checkpoints: of the run.
        chosen: the checkpoint to go on from, verified; None for a start from the beginning.
        store: the run's folder in a store; None: it has none.

    Raises:
        ConfigError: a live run has the folder, what is to be resumed is damaged or does not fit, or
            it would no longer be the run that was saved.
    """

    def __init__(self, plan: RunPlan) -> None:
        options = plan.config.checkpoint
        self._plan = plan
        self._folder = RunFolder(plan.folder, sync=options.fsync)
        self.store = _store_of(plan)
        self._scratch = plan.folder.parent / f".{plan.folder.name}.fetched"
        self._goes_on = _goes_on(plan.folder / "checkpoints", options.resume, self.store)
        self.chosen: Chosen | None = None
        self._checkpoints: Checkpoints | None = None
        self._differing: list[str] = []
        try:
            self.run_id = from_main(plan.process, self._open)
            self.checkpoints = self._checkpoints = Checkpoints(
                plan.folder / "checkpoints",
                options.keep,
                plan.process,
                plan.layout,
                run=self.run_id,
                keep_every=options.keep_every,
                sync=options.fsync,
                store=self.store,
                scratch=self._scratch,
            )
            if self.store is not None:
                self.store.run = self.run_id
                from_main(plan.process, self._look_into_store)
            if options.resume:
                self._choose(options.resume)
        except BaseException:
            self.close()
            raise

    def begin(self, step: int) -> None:
        """Write down this start; put an earlier run of the name aside where a new one begins. A
        collective.

        Args:
            step: that the run goes on from.

        Raises:
            ConfigError: the folder cannot be written.
        """

        def begin() -> None:
            start = {
                "ranks": self._plan.process.world_size,
                "config": plain(self._plan.config),
                "environment": stamp(),
                "resumed": self.chosen and {"checkpoint": str(self.chosen.path), "step": step},
                "differs": self._differing,
            }
            tell(*self._folder.begin(start, resumed=self._goes_on))

        from_main(self._plan.process, begin)
        if self.chosen is not None and self.chosen.path.parent == self._scratch:
            dist.barrier()
            if self._plan.process.is_main:
                shutil.rmtree(self._scratch, ignore_errors=True)

    def look_for_room(self, model: nn.Module, first: int, last: int) -> None:
        """Say at once what a disk would say after the first thousand steps.

        Args:
            model: of the engine.
            first: step that the run goes on from.
            last: step that it ends at.
        """
        plan, options = self._plan, self._plan.config.checkpoint
        # A model that stage 3 has cut up no longer tells its size.
        if not plan.process.is_main or plan.stage == 3 or not saves(options):
            return
        each = saved_bytes(plan, model)
        for_good = options.kept_for_good(first, last)
        # One more than is kept stands while it is written; with a store others while they are sent.
        beside = 1 if self.store is None else 2 + (options.keep == 1)
        wanted = each * (options.keep + beside + for_good)
        free = free_bytes(plan.folder)
        if free is not None and free < wanted:
            kept = f"{options.keep} kept" + (f", {for_good} kept for good" if for_good else "")
            tell(
                f"Checkpoints will take {wanted / 1e9:.1f} GB ({kept} and {_COUNTS[beside]} more "
                f"of {each / 1e9:.2f} GB each), and {free / 1e9:.1f} GB are free at {plan.folder}"
            )

    def require(self) -> None:
        """The folder is still this run's, or is made anew. A collective.

        Raises:
            ConfigError: another run took it.
            OSError: it cannot be written.
        """
        from_main(self._plan.process, self._folder.require)

    def close(
        self, status: str = "", step: int = 0, leave: Callable[[], object] | None = None
    ) -> None:
        """Let others have the name.

        Args:
            status: how the run ended, for its record; empty where it never began.
            step: optimizer steps taken.
            leave: is called while the name is still this run's, with all written.
        """
        if self._checkpoints is not None:
            self._checkpoints.saving.close()
        if status and self._plan.process.is_main:
            self._folder.end(status, step)
        if leave is not None:
            leave()
        self._folder.close()

    def _open(self) -> str:
        found = find(self._plan.folder / "checkpoints") if self._goes_on else []
        known = next((entry.manifest.run for entry in reversed(found) if entry.manifest), "")
        fetch = None
        if self._goes_on and self.store is not None and not known:
            there = reached(LATEST, lambda _: self.store.find() if self.store else [])
            runs = [stored.manifest.run for stored in there if stored.manifest]
            known = runs[-1] if runs else ""
            fetch = self._fetch_records if runs else None
        tell(*self._folder.open(resumes=self._goes_on, known=known, fetch=fetch))
        return self._folder.run_id

    def _fetch_records(self) -> list[str]:
        """What the run wrote down, for a machine that has nothing of it."""
        assert self.store is not None
        storage, lines = storage_of(self.store.folder), []
        for name in (RECORD, METRICS):
            there, here = join(self.store.folder, name), self._plan.folder / name
            try:
                data = storage.read(there)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise ConfigError(f"--resume: {error}") from error
            here.parent.mkdir(parents=True, exist_ok=True)
            write_whole(here, data)
            lines.append(f"Fetched {there}")
        return lines

    def _look_into_store(self) -> None:
        """Say at once what cannot work with the store; one that is away may come back."""
        assert self.store is not None
        try:
            self.store.require_writable()
            self.store.require_own(self.store.find())
        except UnreachableError as error:
            if self._plan.config.checkpoint.resume == LATEST:
                raise ConfigError(f"--checkpoint.upload: {error}") from error
            tell(f"--checkpoint.upload: {error}. The run goes on, and each checkpoint tries anew")
        except ConfigError:
            raise
        except (OSError, ValueError) as error:
            raise ConfigError(f"--checkpoint.upload {self.store.folder}: {error}") from error

    def _choose(self, which: str) -> None:
        options, is_main = self._plan.config.checkpoint, self._plan.process.is_main
        if self._goes_on:
            self.checkpoints.tidy()
        self.chosen = self.checkpoints.choose(which)
        if self.chosen is None:
            if is_main:
                tell(f"{self._plan.folder} has no checkpoint: the run starts from its beginning")
            return
        if is_main:
            tell(*self.chosen.notes)
        saved = self.chosen.manifest.state.get("config", {})
        found = differences(saved, self._plan.config)
        refuse_changes(found, allowed=options.resume_with_changes)
        carried = self.checkpoints.differing(self.chosen)
        self._differing = [*carried, *map(str, found)]
        if self._differing and is_main:
            tell("Differs from the run that was saved:", *(f"  {d}" for d in self._differing))
        if self._goes_on and which != LATEST:
            notes = self.checkpoints.rewind(self.chosen)
            if is_main:
                tell(*notes)


def saves(options: CheckpointConfig) -> bool:
    """Whether checkpoints are wanted at all."""
    return options.every_steps > 0 or options.every_minutes > 0 or options.keep_every > 0


def _store_of(plan: RunPlan) -> CheckpointStore | None:
    options = plan.config.checkpoint
    if not plan.folder_in_store:
        return None
    return CheckpointStore(plan.folder_in_store, keep=options.keep, keep_every=options.keep_every)


def _goes_on(checkpoints: Path, which: str | None, store: CheckpointStore | None) -> bool:
    """Whether the folder's own run goes on; another run's checkpoint begins a run of its own."""
    if not which:
        return False
    if which == LATEST or (store is not None and store.holds(which)):
        return True
    return not is_elsewhere(which) and Path(which).resolve().parent == checkpoints.resolve()
