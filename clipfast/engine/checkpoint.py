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
    Problem,
    Refused,
    find,
    look,
    newest_first,
    problems,
    why_refused,
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
        return self._choose(LATEST)[0]

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
        damaged: list[Path] = []
        lines: list[str] = []
        for found in candidates:
            if found.manifest and not found.damage:
                self._check_layout(which, found.path, found.manifest.layout)
                seen = self._verify(found)
            else:
                # Another run's has a manifest and is refused by it: it is not ours to rename.
                seen = [Problem(found.damage, found.is_damage and not found.manifest)]
            if not seen:
                return self._chosen(found, damaged, lines)
            lines += [problem.text for problem in seen]
            if which == LATEST and any(problem.is_damage for problem in seen):
                damaged.append(found.path)
        if lines:
            raise ConfigError(
                f"--resume {which}: no checkpoint is intact. {'; '.join(lines)}. Fetch a copy of "
                "one, name another (--resume PATH), or start a new run without --resume: the "
                "folder is then kept under another name"
            )
        if which == LATEST:
            from_main(self.process, self._require_no_remains)
            return None
        from_main(self.process, lambda: self._require_no_run(which))
        here = from_main(
            self.process, lambda: [str(f.path) for f in find(self.folder) if f.manifest]
        )
        raise ConfigError(
            f"--resume {which}: no complete checkpoint there (no manifest.json); complete ones of "
            f"this run: {', '.join(here) or 'none'}"
        )

    def _choose(self, which: str) -> tuple[Path | None, dict[str, Any]]:
        """What a resume would try first, by manifests alone: its folder, its step and state."""
        every = find(self.folder) if which == LATEST else [look(Path(which))]
        for found in reversed(every):
            if found is not None and found.manifest is not None:
                return found.path, {"step": found.manifest.step, **found.manifest.state}
        return None, {}

    def _require_no_remains(self) -> None:
        """Raise where a start from the beginning would write over what a run left."""
        aside = sorted(path.name for path in self.folder.glob("step*.damaged*"))
        if aside:
            raise ConfigError(
                f"--resume {LATEST}: {self.folder} has no checkpoint but damaged ones "
                f"({', '.join(aside)}). Fetch a copy of one, or start a new run without --resume: "
                "the folder is then kept under another name"
            )
        final = self.folder.parent / "final.safetensors"
        if final.exists():
            raise ConfigError(
                f"--resume {LATEST}: the run has ended ({final}) and has no checkpoint to go on "
                "from. Start a new one without --resume: the folder is then kept under another "
                "name; --model.weights takes what it left"
            )

    def _require_no_run(self, which: str) -> None:
        """Raise with the checkpoints of a run, where its folder was named and not one of them."""
        inside = [str(f.path) for f in find(Path(which) / "checkpoints") if f.manifest]
        if inside:
            raise ConfigError(
                f"--resume {which} is a run's folder: name one of its checkpoints, "
                f"{', '.join(inside)}"
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
            loaded, _ = engine.load_checkpoint(str(chosen.path.parent), tag=chosen.path.name)
        except Refused as error:
            raise ConfigError(f"--resume {chosen.path}: {error}") from error
        except (AssertionError, AttributeError, KeyError, TypeError, OSError) as error:
            # What DeepSpeed meets in a checkpoint that is none of this run's, or is in parts.
            reason = f"{type(error).__name__} {error}"
            raise ConfigError(f"--resume {chosen.path} cannot be loaded: {reason}") from error
        if loaded is None:
            raise ConfigError(f"--resume {chosen.path} cannot be loaded: a file is missing")

    def tidy(self) -> None:
        """Finish or remove what a killed run left half done. A collective."""
        from_main(self.process, self._tidy)

    def rewind(self, chosen: Chosen) -> list[str]:
        """Put aside what is newer than a checkpoint that the run goes back to. A collective.

        Args:
            chosen: of ``choose``.

        Returns:
            Lines for a person.
        """

        def act() -> list[str]:
            newer = [
                found.path
                for found in find(self.folder)
                if found.manifest and found.manifest.counter > chosen.manifest.counter
            ]
            return [_put_aside(path, "superseded") for path in newer]

        return from_main(self.process, act)

    def _tidy(self) -> None:
        # What is whole under a new attempt's name comes before what it was to replace.
        for path in sorted(self.folder.glob(".step*"), key=lambda p: p.suffix != ".partial"):
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
        return (
            f"{found.path} was saved by run {found.manifest.run}, this is run {self.run}: a run of "
            "another name can branch off from it (--resume PATH)"
        )

    def _verify(self, found: Found) -> list[Problem]:
        """What is damaged, the same on every rank.

        Raises:
            ConfigError: a file would run something.
        """
        manifest = found.manifest
        assert manifest is not None
        by_size = sorted(manifest.files, key=lambda name: -manifest.files[name].size)
        mine = by_size[self.process.rank :: self.process.world_size]
        seen = problems(found.path, manifest, mine)
        if self.process.is_main and not manifest.is_verifiable:
            seen = _missing_parts(found)
        refused = [] if seen else _refused(found.path, mine)
        shared: list[Any] = [None] * self.process.world_size
        dist.all_gather_object(shared, (seen, refused))
        if any(refusals for _, refusals in shared):
            lines = [line for _, refusals in shared for line in refusals]
            raise ConfigError(f"--resume: {'; '.join(lines)}")
        return [problem for problems_of_rank, _ in shared for problem in problems_of_rank]

    def _chosen(self, found: Found, damaged: list[Path], lines: list[str]) -> Chosen:
        assert found.manifest is not None
        notes = []
        if lines:
            notes.append(f"DAMAGED: {'; '.join(lines)}")
            notes += from_main(self.process, lambda: [_put_aside(path) for path in damaged])
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
        if self.sync:
            for folder in (self.folder, self.folder.parent, self.folder.parent.parent):
                sync_path(folder)
        self._tidy()
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
        manifest = Manifest(self.run, counter, step, self.layout, state, written)
        if self.sync:
            sync_path(partial)
        manifest.write(partial, sync=self.sync)
        replaced = self.folder / f".{path.name}.replaced"
        there = look(path)
        if there and there.manifest and self._foreign(there):
            _put_aside(path, there.manifest.run)
        elif path.exists():
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
            # Another run's are not ours, and what is damaged is no checkpoint to count on.
            if found.path != newest and found.manifest and not self._foreign(found)
        ]
        # The newest last; one place is taken by what was just saved.
        for old in others[: max(0, len(others) - (self.keep - 1))]:
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
            if reason := why_refused(folder / name):
                lines.append(f"{folder / name} was refused, nothing of it was run: {reason}")
        except Refused as error:
            lines.append(str(error))
    return lines


def _missing_parts(found: Found) -> list[Problem]:
    """Files that a checkpoint of an earlier version should have, by what its layout says."""
    assert found.manifest is not None
    layout = found.manifest.layout
    names = [path.name for path in found.path.iterdir()]
    ranks = layout.get("ranks") if layout.get("ZeRO stage") else 0
    lines = []
    if not any(name.endswith("_model_states.pt") for name in names):
        lines.append(f"{found.path} has no model states")
    there = sum(name.endswith("_optim_states.pt") for name in names)
    if isinstance(ranks, int) and there < ranks:
        lines.append(f"{found.path} has optimizer states of {there} ranks, {ranks} were saved")
    return [Problem(line) for line in lines]


def _put_aside(path: Path, why: str = "damaged") -> str:
    """Rename a checkpoint so that it no longer counts; a line for a person."""
    for number in range(1000):
        kept = path.with_name(f"{path.name}.{why}{f'.{number}' if number else ''}")
        if not kept.exists():
            try:
                path.rename(kept)
            except OSError as error:
                return explain(error, path)
            return f"{path.name} is kept as {kept.name}"
    return f"{path} stays where it is"
