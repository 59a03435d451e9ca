"""A task as an evaluation of a run: sets opened at its start, measured by all ranks together."""

from __future__ import annotations

import hashlib
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from clipfast.eval.evaluation import Encoder, Evaluation, Measured
from clipfast.eval.results import ResultFile
from clipfast.eval.setencoder import SetEncoder
from clipfast.eval.sets import CaptionedSet, LabelledSet
from clipfast.eval.tasks.asked import Asked, TaskOptions
from clipfast.eval.tasks.dealing import Job, dealt

# Of ``open_set``'s messages: how a run spells the same.
_SPELLED = {"--classnames": "--eval.classnames", "--templates": "--eval.templates"}


def _nothing_more(path: Path) -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """What a task found on one set.

    Attributes:
        metrics: by CLIP_benchmark's names where it has them; None: undefined.
        intervals: of some of them.
        lines: for a person.
        more: what stands in the result beside them.
        beside: writes what lies beside a result, given its path, and tells what stands of it there.
        kept: what pictures need.
    """

    metrics: Mapping[str, float | None]
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    lines: Sequence[str]
    more: Mapping[str, Any] = field(default_factory=dict)
    beside: Callable[[Path], Mapping[str, Any]] = _nothing_more
    kept: Any = None


@dataclass(frozen=True, kw_only=True, eq=False)
class SetMeasured(Measured):
    """What a task found on one set in one evaluation of a run.

    Attributes:
        label: name of the set in tags, tables and results.
        result_task: as results name the task.
        found: all of it.
        seconds: it took.
        waited: seconds of these that the rank that waited most waited for others.
    """

    label: str
    result_task: str
    found: Found
    seconds: float
    waited: float

    def write(self, folder: Path, model: str, pretrained: str) -> Path:
        """Write it as ``python -m clipfast.eval`` does.

        Args:
            folder: of results.
            model: name of the model.
            pretrained: where its weights are.

        Raises:
            ValueError: a metric is not finite.
            OSError: it cannot be written.
        """
        file = ResultFile(folder, self.label, model, pretrained, self.result_task)
        beside = self.found.beside(file.path)
        file.write(self.found.metrics, {**self.found.more, **beside})
        return file.path


class SetTask(Evaluation):
    """One task on one or more sets.

    Args:
        asked: the sets.
        options: of all sets.

    Attributes:
        sets: what was opened, by the sets' names in tags.

    Raises:
        ValueError: a set cannot be read or does not fit the task; says which option, where, and
            what to do.
    """

    name: ClassVar[str]
    result_task: ClassVar[str]

    def __init__(self, asked: Sequence[Asked], options: TaskOptions) -> None:
        self.options = options
        self.sets: dict[str, Any] = {}
        self._spent: dict[str, float] = {}
        self._words: Mapping[str, Path] = {}
        self._since = time.monotonic()
        for one in asked:
            try:
                label, opened = self._open(one)
            except (ValueError, OSError, ImportError) as error:
                raise ValueError(f"--eval.tasks {one}: {self._told(error)}") from error
            if label in self.sets:
                raise ValueError(
                    f"--eval.tasks {one}: there is a set {label!r} of {self.name} already. Give "
                    f"this one another name: {self.name}:NAME={one.source}"
                )
            self.sets[label] = opened

    @abstractmethod
    def open(self, source: str, split: str, words: Mapping[str, Path]) -> Any:
        """Open a set; at the start of a run, on every rank.

        Args:
            source: see ``open_set``.
            split: that is measured.
            words: "classnames" and "templates" that were given.

        Returns:
            A ``LabelledSet``, a ``CaptionedSet``, or a mapping of some by their splits.

        Raises:
            ValueError: it cannot be measured.
        """

    @abstractmethod
    def encode(self, encoder: SetEncoder, opened: Any) -> tuple[Sequence[Job], Any]:
        """All that ranks do together. A collective.

        Args:
            encoder: of the model.
            opened: by ``open``.

        Returns:
            What is left to do, in jobs that need no other rank and return what pickles; and what
            ``finish`` gets.
        """

    @abstractmethod
    def finish(self, opened: Any, kept: Any, done: Sequence[Any]) -> Found:
        """What was found, the same on every rank.

        Args:
            opened: by ``open``.
            kept: of ``encode``.
            done: what its jobs returned.
        """

    def facts(self) -> dict[str, str]:
        """What has to be the same on every rank: the contents of the sets."""
        return {
            f"--eval.tasks {self.name}={label}": _contents(opened)
            for label, opened in self.sets.items()
        }

    def run(self, encoder: Encoder) -> Sequence[SetMeasured]:
        """Encode every set, then deal out what is left to do."""
        jobs: list[Job] = []
        owner: list[str] = []
        kept, seconds, waited = {}, {}, {}
        for label, opened in self.sets.items():
            sets = encoder.sets()
            began = time.perf_counter()
            left, kept[label] = self.encode(sets, opened)
            seconds[label] = time.perf_counter() - began
            waited[label] = sets.sharing.waiting.seconds
            jobs += left
            owner += [label] * len(left)
        sharing = encoder.sets().sharing
        if jobs:
            began = time.perf_counter()
            done, each = dealt(sharing, jobs)
            wall, idle = time.perf_counter() - began, sharing.waiting.seconds
            for label in self.sets:
                own = sum(s for s, of in zip(each, owner, strict=True) if of == label)
                share = own / max(sum(each), 1e-9)
                seconds[label] += wall * share
                waited[label] += idle * share
        else:
            done = []
        slowest = sharing.gather_objects((seconds, waited))
        measured = []
        for label, opened in self.sets.items():
            mine = [one for one, of in zip(done, owner, strict=True) if of == label]
            measured.append(
                self._measured(
                    label,
                    self.finish(opened, kept[label], mine),
                    max(took[label] for took, _ in slowest),
                    max(idle[label] for _, idle in slowest),
                    sharing.world_size > 1,
                )
            )
        return measured

    def _open(self, asked: Asked) -> tuple[str, Any]:
        """The name of a set in tags, and the set."""
        opened = self._opened(asked.source, asked.name)
        if asked.name:
            return asked.name, opened
        name = _name(opened)
        # Words are given by the set's name, which some sets tell themselves.
        is_said = any(name in said for said in self.options.of_sets().values())
        return name, self._opened(asked.source, name) if is_said else opened

    def _opened(self, source: str, name: str) -> Any:
        options = self.options
        self._words = {
            what: Path(given[name])
            for what, given in (
                ("classnames", options.classnames),
                ("templates", options.templates),
            )
            if name in given
        }
        return self.open(source, options.splits.get(name, "test"), self._words)

    def _told(self, error: Exception) -> str:
        """An error of the last set in the spelling of a run, with the files that were given."""
        text = str(error)
        for theirs, ours in _SPELLED.items():
            text = text.replace(theirs, ours)
        files = [f"{what} {path}" for what, path in self._words.items() if str(path) not in text]
        return f"{text}. Given were {', '.join(files)}" if files else text

    def _measured(
        self, label: str, found: Found, seconds: float, waited: float, several: bool
    ) -> SetMeasured:
        self._spent[label] = self._spent.get(label, 0.0) + seconds
        share = self._spent[label] / max(time.monotonic() - self._since, 1e-9)
        head = f"eval/{label}/{self.name}"
        scalars = {f"{head}/{k}": v for k, v in found.metrics.items() if v is not None}
        for name, (low, high) in found.intervals.items():
            scalars |= {f"{head}/{name}_low": low, f"{head}/{name}_high": high}
        scalars |= {
            f"{head}/seconds": seconds,
            f"{head}/waited": waited,
            f"{head}/share": share,
        }
        first, *others = found.lines
        took = f"{seconds:.1f} s, {share:.1%} of the run so far"
        if several:
            took += f"; a rank waited {waited:.1f} s at most"
        return SetMeasured(
            scalars=scalars,
            lines=[f"{label}, {first}", *others, f"  {took}"],
            label=label,
            result_task=self.result_task,
            found=found,
            seconds=seconds,
            waited=waited,
        )


def _name(opened: Any) -> str:
    name: str = next(iter(opened.values())).name if isinstance(opened, Mapping) else opened.name
    return name


def _contents(opened: Any) -> str:
    if isinstance(opened, Mapping):
        return ", ".join(f"{name}: {_contents(one)}" for name, one in opened.items())
    digest = hashlib.sha256()
    if isinstance(opened, LabelledSet):
        digest.update(repr((opened.classnames, opened.templates)).encode())
        digest.update(opened.labels.tobytes())
        return f"{len(opened)} images, {len(opened.classnames)} classes ({digest.hexdigest()[:8]})"
    assert isinstance(opened, CaptionedSet)
    digest.update(repr(list(opened.captions)).encode())
    digest.update(opened.image_of.tobytes())
    return f"{len(opened)} images, {len(opened.captions)} captions ({digest.hexdigest()[:8]})"
