"""A run's checkpoints: saved whole or not at all, verified before they are loaded."""

import errno
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from clipfast.checkpoint import (
    Entry,
    Found,
    Manifest,
    Refused,
    find,
    look,
    newest_first,
    problems,
    refused_globals,
)
from clipfast.checkpoint.manifest import folder_name_of
from clipfast.engine.agreement import from_main
from clipfast.engine.config import ConfigError
from clipfast.engine.launch import Process
from clipfast.files import explain, sync_path

LATEST = "latest"


class SaveFailed(OSError):
    """A checkpoint could not be saved; the run goes on. The message names path and free space."""


@dataclass(frozen=True)
class Chosen:
    """The checkpoint that a run goes on from.

    Attributes:
        path: its folder.
        manifest: what it says of itself.
        notes: lines for a person, such as which newer ones were damaged.
    """

    path: Path
    manifest: Manifest
    notes: list[str]


class Checkpoints:
    """The checkpoints of one run. Every method that ranks share is a collective.

    A checkpoint is a folder ``stepNNNNNNNN`` that DeepSpeed fills under a hidden name. Its manifest
    is written after every rank has finished, then the folder is renamed: a run killed while saving
    resumes from the one before. The file system must be one that all ranks see.

    Args:
        folder: holds the checkpoints.
        keep: how many stay.
        process: this rank.
        layout: what a checkpoint must share with the run that loads it, such as the ZeRO stage.
        run: id of the run; empty takes the checkpoints of any.
        sync: wait until what is saved is on the disk.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        process: Process,
        layout: dict[str, int | str],
        *,
        run: str = "",
        sync: bool = True,
    ) -> None:
        self.folder = folder
        self.keep = keep
        self.process = process
        self.layout = layout
        self.run = run
        self.sync = sync
        # Of the newest checkpoint, to look for room before the next.
        self._size = 0

    def latest(self) -> Path | None:
        """The newest, as far as its manifest tells."""
        readable = [found.path for found in find(self.folder) if found.manifest]
        return readable[-1] if readable else None

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
        path = self.folder / folder_name_of(step)
        # A rank of a killed run may still be writing: it must not meet this attempt's files.
        token = from_main(self.process, lambda: uuid.uuid4().hex[:8])
        partial = self.folder / f".{path.name}.{token}.partial"
        files = engine.checkpoint_engine
        self._on_main(lambda: self._prepare(partial), partial)
        files.begin()
        files.sync = self.sync
        engine.save_checkpoint(str(self.folder), tag=partial.name, save_latest=False)
        written = self._gather(files, partial)
        self._on_main(lambda: self._finish(partial, path, step, state, written), partial)
        return path

    def choose(self, which: str) -> Chosen | None:
        """Find a checkpoint and verify it: every byte is read, ranks share the files.

        Args:
            which: ``latest``, or the path of a checkpoint.

        Returns:
            None for ``latest`` where the run has no checkpoint yet. For ``latest`` a damaged one is
            put aside as ``NAME.damaged``, and the newest intact one is taken.

        Raises:
            ConfigError: the path holds no intact checkpoint, or one of another layout; or this run
                has some and none is intact; or a file would run something.
        """
        # Rank 0 looks for all: file systems do not show a new file everywhere at once.
        candidates = from_main(self.process, lambda: self._candidates(which))
        damaged: list[Found] = []
        lines: list[str] = []
        for found in candidates:
            if found.manifest and not found.damage:
                self._check_layout(which, found.path, found.manifest.layout)
            damage = [found.damage] if found.damage else self._verify(found)
            if damage:
                damaged.append(found)
                lines += damage
                continue
            return self._chosen(which, found, damaged, lines)
        if damaged:
            raise ConfigError(
                f"--resume {which}: no checkpoint is intact. {'; '.join(lines)}. Fetch a copy of "
                "one, or start a new run without --resume: what is here is kept under another name"
            )
        if which == LATEST:
            return None
        here = from_main(
            self.process, lambda: [str(f.path) for f in find(self.folder) if f.manifest]
        )
        raise ConfigError(
            f"--resume {which}: no complete checkpoint there (no manifest.json); complete ones of "
            f"this run: {', '.join(here) or 'none'}"
        )

    def load(self, engine: Any, chosen: Chosen) -> None:
        """Load a checkpoint into the engine.

        Args:
            engine: the DeepSpeed engine.
            chosen: of ``choose``.

        Raises:
            ConfigError: a file would run something, or does not hold what a checkpoint holds.
        """
        self._size = chosen.manifest.size
        try:
            engine.load_checkpoint(str(chosen.path.parent), tag=chosen.path.name)
        except Refused as error:
            raise ConfigError(f"--resume {chosen.path}: {error}") from error

    def tidy(self) -> None:
        """Finish or remove what a killed run left half done, on rank 0; others must not save."""
        if not self.process.is_main:
            return
        for path in self.folder.glob(".step*"):
            final = self.folder / path.name.split(".")[1]
            whole = path.suffix in (".partial", ".replaced")
            if whole and not final.exists() and (found := look(path)) and found.manifest:
                path.rename(final)
            else:
                shutil.rmtree(path, ignore_errors=True)

    def _candidates(self, which: str) -> list[Found]:
        if which != LATEST:
            found = look(Path(which))
            every = [found] if found else []
            if Path(which).resolve().parent != self.folder.resolve():
                return every
        else:
            every = newest_first(self.folder)
        return [
            replace(found, damage=self._foreign(found)) if found.manifest else found
            for found in every
        ]

    def _foreign(self, found: Found) -> str:
        assert found.manifest is not None
        if not self.run or not found.manifest.run or found.manifest.run == self.run:
            return ""
        return f"{found.path} was saved by run {found.manifest.run}, this is run {self.run}"

    def _verify(self, found: Found) -> list[str]:
        """Lines for what is damaged, the same on every rank.

        Raises:
            ConfigError: a file would run something.
        """
        manifest = found.manifest
        assert manifest is not None
        by_size = sorted(manifest.files, key=lambda name: -manifest.files[name].size)
        mine = by_size[self.process.rank :: self.process.world_size]
        damage = problems(found.path, manifest, mine)
        refused = [] if damage else _refused(found.path, mine)
        shared: list[Any] = [None] * self.process.world_size
        dist.all_gather_object(shared, (damage, refused))
        if any(refusals for _, refusals in shared):
            lines = [line for _, refusals in shared for line in refusals]
            raise ConfigError(f"--resume: {'; '.join(lines)}")
        return [line for damages, _ in shared for line in damages]

    def _chosen(self, which: str, found: Found, damaged: list[Found], lines: list[str]) -> Chosen:
        assert found.manifest is not None
        notes = []
        if damaged:
            notes.append(f"DAMAGED: {'; '.join(lines)}")
            # Another run's, which has a manifest and is refused by it, is not ours to rename.
            ours = [entry.path for entry in damaged if not (entry.manifest and entry.damage)]
            notes += from_main(self.process, lambda: [_put_aside(path) for path in ours])
            notes.append(f"The newest intact checkpoint is {found.path}")
        if not found.manifest.is_verifiable:
            notes.append(
                f"{found.path} was saved by an earlier version: it has no hashes to be verified by"
            )
        return Chosen(found.path, found.manifest, notes)

    def _check_layout(self, which: str, path: Path, layout: Mapping[str, Any]) -> None:
        # What there was before there was another kind.
        saved = {"masters": "float32", "loss": "contrastive", **layout}
        wanted = dict(self.layout)
        if saved.get("ZeRO stage") == wanted.get("ZeRO stage") == 0:
            # One file holds everything, whoever loads it.
            wanted.pop("ranks", None)
        differing = [
            f"{name} {saved.get(name)}, not {value}"
            for name, value in wanted.items()
            if saved.get(name) != value
        ]
        if not differing:
            return
        reason = (
            "At stages 1 to 3 each rank's file holds its part of flat tensors, in blocks that "
            "share a scale, which cannot be dealt out anew"
            if saved.get("ranks") != wanted.get("ranks", saved.get("ranks"))
            else "What is saved and what this run keeps are of different kinds"
        )
        # Where the optimizer holds what makes weights exact, the script finds their bf16 values.
        has_masters = saved.get("masters") == "float32" and saved.get("ZeRO stage") != 0
        script = (
            f", or rebuild them without a run: python {path.parent}/zero_to_fp32.py "
            f"{path.parent} OUT -t {path.name}"
            if has_masters
            else ""
        )
        raise ConfigError(
            f"--resume {which}: {path} was saved with {', '.join(differing)}. {reason}. Resume "
            "with what it was saved with. To go on otherwise, with new Adam statistics, let that "
            "run write its exact weights (resume as saved, with --max-steps at the checkpoint's "
            f"step and --resume-with-changes: final.safetensors){script}. Then start from them "
            "with --model.weights"
        )

    def _prepare(self, partial: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.tidy()
        free = shutil.disk_usage(self.folder).free
        if free < self._size:
            raise OSError(
                errno.ENOSPC,
                f"{os.strerror(errno.ENOSPC)}: the last checkpoint had {self._size / 1e9:.2f} GB",
                str(self.folder),
            )
        partial.mkdir()

    def _finish(
        self,
        partial: Path,
        path: Path,
        step: int,
        state: Mapping[str, Any],
        written: Mapping[str, Entry],
    ) -> None:
        """Write the manifest and put the folder in place, then delete what is no longer kept."""
        counter = 1 + max((f.manifest.counter for f in find(self.folder) if f.manifest), default=-1)
        manifest = Manifest(self.run, max(counter, 0), step, self.layout, state, written)
        manifest.write(partial, sync=self.sync)
        replaced = self.folder / f".{path.name}.replaced"
        if path.exists():
            path.rename(replaced)
        partial.rename(path)
        if self.sync:
            sync_path(self.folder)
        self._size = manifest.size
        shutil.rmtree(replaced, ignore_errors=True)
        self._delete_all_but(path)

    def _delete_all_but(self, newest: Path) -> None:
        others = [
            found.path
            for found in find(self.folder)
            if found.path != newest and not (found.manifest and self._foreign(found))
        ]
        # The newest last; one place is taken by what was just saved.
        for old in others[: len(others) - (self.keep - 1)]:
            # Under another name a half-deleted folder is no checkpoint.
            hidden = old.with_name(f".{old.name}.deleted")
            with suppress(OSError):
                old.rename(hidden)
                shutil.rmtree(hidden)

    def _gather(self, files: Any, partial: Path) -> dict[str, Entry]:
        """The files that all ranks wrote.

        Raises:
            SaveFailed: on every rank, where one of them could not write.
        """
        error = explain(files.error, partial) if files.error else ""
        shared: list[Any] = [None] * self.process.world_size
        dist.all_gather_object(shared, (files.written, error))
        errors = [f"rank {rank}: {text}" for rank, (_, text) in enumerate(shared) if text]
        if errors:
            self._forget(partial)
            raise SaveFailed(f"no checkpoint was saved: {'; '.join(errors)}")
        return {name: entry for written, _ in shared for name, entry in written.items()}

    def _on_main(self, act: Callable[[], None], partial: Path) -> None:
        """Let rank 0 act, and all ranks know whether it could.

        Raises:
            SaveFailed: on every rank, where it could not.
        """

        def message() -> str:
            try:
                act()
            except OSError as error:
                return explain(error, partial)
            return ""

        if error := from_main(self.process, message):
            self._forget(partial)
            raise SaveFailed(f"no checkpoint was saved: {error}")

    def _forget(self, partial: Path) -> None:
        if self.process.is_main:
            shutil.rmtree(partial, ignore_errors=True)
        dist.barrier()


def _refused(folder: Path, names: list[str]) -> list[str]:
    lines = []
    for name in names:
        try:
            if wanted := refused_globals(folder / name):
                lines.append(
                    f"{folder / name} was refused, nothing of it was run: it asks for "
                    f"{', '.join(wanted)}, which no checkpoint of clipfast holds"
                )
        except Refused as error:
            lines.append(str(error))
    return lines


def _put_aside(path: Path) -> str:
    for number in range(1000):
        kept = path.with_name(f"{path.name}.damaged{f'.{number}' if number else ''}")
        if not kept.exists():
            try:
                path.rename(kept)
            except OSError as error:
                return explain(error, path)
            return f"{path.name} is kept as {kept.name}"
    return f"{path} stays where it is"
