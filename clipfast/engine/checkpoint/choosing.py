"""Which checkpoint a run goes on from: it is verified, then loaded."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from clipfast.checkpoint import (
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
from clipfast.checkpoint.fragments import Unfit
from clipfast.engine.agreement import from_main
from clipfast.engine.checkpoint.fetching import fetch
from clipfast.engine.checkpoint.folder import CheckpointFolder, put_aside
from clipfast.engine.checkpoint.store import (
    CHECKPOINTS,
    CheckpointStore,
    Stored,
    look_in_store,
    merged,
)
from clipfast.engine.config import ConfigError
from clipfast.engine.launch import Process
from clipfast.storage.nearby import is_elsewhere

_Made = TypeVar("_Made")
LATEST = "latest"
# Parts of a layout that a checkpoint carries over, whatever they were.
_CARRIED = ("ranks", "ZeRO stage", "masters")
_OF_ANOTHER_RUN = (AttributeError, IndexError, KeyError, OSError, RuntimeError, TypeError)


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


class Choosing:
    """Finds, verifies and loads a run's checkpoints. Every method is a collective.

    Args:
        folder: holds them.
        process: this rank.
        layout: what a checkpoint must share with the run that loads it, such as the ZeRO stage.
        store: the run's folder in a store; None: it has none.
        scratch: where a checkpoint of another run is fetched to, out of a store.
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        process: Process,
        layout: Mapping[str, int | str],
        store: CheckpointStore | None = None,
        scratch: Path | None = None,
    ) -> None:
        self.folder = folder
        self.process = process
        self.layout = layout
        self.store = store
        self._scratch = scratch

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
        candidates = from_main(self.process, lambda: reached(which, self._candidates))
        damaged: list[Found | Stored] = []
        lines: list[str] = []
        notes: list[str] = []
        for candidate in candidates:
            found, seen = self._seen(which, candidate, notes)
            if not seen:
                assert found is not None
                return self._chosen(found, damaged, lines, notes)
            lines += [problem.text for problem in seen]
            if which == LATEST and any(problem.is_damage for problem in seen):
                damaged.append(candidate)
        if lines:
            raise ConfigError(
                f"--resume {which}: no checkpoint is intact. {'; '.join(lines)}. Fetch a copy of "
                "one, name another (--resume PATH), or start a new run without --resume: the "
                "folder is then kept under another name"
            )
        if which == LATEST:
            from_main(self.process, self._require_no_remains)
            return None
        from_main(self.process, lambda: reached(which, self._require_no_run))
        here = from_main(
            self.process, lambda: [str(f.path) for f in find(self.folder.path) if f.manifest]
        )
        raise ConfigError(
            f"--resume {which}: no complete checkpoint there (no manifest.json); complete ones of "
            f"this run: {', '.join(here) or 'none'}"
        )

    def _seen(
        self, which: str, candidate: Found | Stored, notes: list[str]
    ) -> tuple[Found | None, list[Problem]]:
        """A checkpoint, fetched where it is in a store, and what is wrong with it."""
        if candidate.damage or candidate.manifest is None:
            # Another run's has a manifest and is refused by it: it is not ours to rename.
            is_damage = isinstance(candidate, Stored) or candidate.is_damage
            return None, [Problem(candidate.damage, is_damage and not candidate.manifest)]
        self._check_layout(which, candidate.path, candidate.manifest.layout)
        if isinstance(candidate, Found):
            return candidate, self._verify(candidate)
        folder = self.folder
        if self.store is None or not self.store.holds(candidate.path):
            assert self._scratch is not None
            folder = CheckpointFolder(self._scratch)
        found, problems, line = fetch(candidate, folder, self.process)
        notes += [line] if line else []
        return found, problems or (self._verify(found) if found else [])

    def _require_no_remains(self) -> None:
        """Raise where a start from the beginning would write over what a run left."""
        aside = sorted(path.name for path in self.folder.path.glob("step*.damaged*"))
        if aside:
            raise ConfigError(
                f"--resume {LATEST}: {self.folder.path} has no checkpoint but damaged ones "
                f"({', '.join(aside)}). Fetch a copy of one, or start a new run without --resume: "
                "the folder is then kept under another name"
            )
        final = self.folder.path.parent / "final.safetensors"
        if final.exists():
            raise ConfigError(
                f"--resume {LATEST}: the run has ended ({final}) and has no checkpoint to go on "
                "from. Start a new one without --resume: the folder is then kept under another "
                "name; --model.weights takes what it left"
            )

    def _require_no_run(self, which: str) -> None:
        """Raise with the checkpoints of a run, where its folder was named and not one of them."""
        if is_elsewhere(which):
            there = CheckpointStore(which).find()
            inside = [stored.path for stored in there if stored.manifest]
        else:
            found = find(Path(which) / CHECKPOINTS)
            inside = [str(f.path) for f in found if f.manifest]
        if inside:
            raise ConfigError(
                f"--resume {which} is a run's folder: name one of its checkpoints, "
                f"{', '.join(inside)}"
            )

    def load(self, engine: Any, chosen: Chosen) -> list[str]:
        """Load a checkpoint into the engine.

        Args:
            engine: the DeepSpeed engine.
            chosen: of ``choose``.

        Returns:
            Lines for a person.

        Raises:
            ConfigError: a file would run something, or does not hold what a checkpoint holds.
        """
        manifest = chosen.manifest
        try:
            notes = engine.contents.load_folder(
                chosen.path, manifest.files, manifest.state.get("engine", {})
            )
        except (Refused, Unfit) as error:
            raise ConfigError(f"--resume {chosen.path}: {error}") from error
        except _OF_ANOTHER_RUN as error:
            # What is met in an earlier version's checkpoint that is none of this run's.
            reason = f"{type(error).__name__} {error}"
            raise ConfigError(f"--resume {chosen.path} cannot be loaded: {reason}") from error
        return list(notes)

    def _candidates(self, which: str) -> list[Found | Stored]:
        stored: list[Stored] = []
        in_own_store = self.store is not None and which != LATEST and self.store.holds(which)
        if which == LATEST:
            every = newest_first(self.folder.path)
            stored = self.store.find() if self.store is not None else []
        elif in_own_store or is_elsewhere(which):
            found_there = look_in_store(which)
            if found_there is None:
                return []
            stored = [found_there]
            here = look(self.folder.path / found_there.name) if in_own_store else None
            every = [here] if here and here.manifest == found_there.manifest else []
        else:
            found = look(Path(which))
            every = [found] if found else []
            if Path(which).resolve().parent != self.folder.path.resolve():
                return list(every)
        own = [
            replace(found, damage=self.folder.foreign(found)) if found.manifest else found
            for found in every
        ]
        return merged(own, stored)

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

    def _chosen(
        self,
        found: Found,
        damaged: list[Found | Stored],
        lines: list[str],
        fetched: list[str],
    ) -> Chosen:
        assert found.manifest is not None
        notes = list(fetched)
        if lines:
            notes.append(f"DAMAGED: {'; '.join(lines)}")
            notes += from_main(self.process, lambda: self._put_aside(damaged, found))
            notes.append(f"The newest intact checkpoint is {found.path}")
        if not found.manifest.is_verifiable:
            notes.append(
                f"{found.path} was saved by an earlier version: it has no hashes to be verified by"
            )
        return Chosen(found.path, found.manifest, notes)

    def _put_aside(self, damaged: list[Found | Stored], chosen: Found) -> list[str]:
        lines = []
        for each in damaged:
            if isinstance(each, Found):
                # Where a copy of the store took its place, that was done.
                if each.path != chosen.path:
                    lines.append(put_aside(each.path))
            elif self.store is not None:
                try:
                    lines.append(self.store.put_aside(each))
                except OSError as error:
                    lines.append(f"{each.path} stays as it is: {error}")
        return lines

    def _check_layout(self, which: str, path: Path | str, layout: Mapping[str, Any]) -> None:
        # What there was before there was another kind.
        saved = {"loss": "contrastive", **layout}
        differing = [
            f"{name} {saved.get(name)}, not {value}"
            for name, value in self.layout.items()
            if name not in _CARRIED and saved.get(name) != value
        ]
        if not differing:
            return
        raise ConfigError(
            f"--resume {which}: {path} was saved with {', '.join(differing)}. What is saved and "
            "what this run keeps are of different kinds. Resume with what it was saved with. To go "
            "on otherwise, with new Adam statistics, write its exact weights (python -m "
            f"clipfast.checkpoint export {path} weights.safetensors) and start from them with "
            "--model.weights"
        )

    def differing(self, chosen: Chosen) -> list[str]:
        """What the run that saved had otherwise, and what carries over all the same.

        Args:
            chosen: of ``choose``.

        Returns:
            Lines for a person.
        """
        saved = chosen.manifest.layout
        return [
            f"{name} {saved[name]} -> {self.layout[name]}"
            for name in _CARRIED
            if name in saved and name in self.layout and saved[name] != self.layout[name]
        ]


def reached(which: str, look_for: Callable[[str], _Made]) -> _Made:
    """What is found of a checkpoint that may be in a store.

    Args:
        which: as of ``Choosing.choose``.
        look_for: finds it.

    Raises:
        ConfigError: the store does not answer, or says no.
    """
    try:
        return look_for(which)
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--resume {which}: {error}. Without --checkpoint.upload the checkpoints of this "
            "machine alone are looked at"
        ) from error


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
