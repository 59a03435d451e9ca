"""One run of the indexer: shards are scanned and checked by workers, results taken as they come."""

import sys
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from clipfast.data.check import Limits, check_caption, check_images
from clipfast.data.fields import Entry, Fields
from clipfast.data.indexfile import write_index
from clipfast.data.report import Report, printable
from clipfast.data.scan import Contents, contents
from clipfast.data.tarwalk import read_exactly
from clipfast.storage import storage_of

# Samples per task: long enough to hide the hand-over, short enough to spread one shard over cores.
_CHUNK = 128


@dataclass
class Summary:
    """What an indexing run did.

    Attributes:
        shards: shards indexed in this run.
        skipped: shards left alone, their index being newer than the tar.
        failed: shards that could not be read; they have no index.
        samples: samples met in indexed shards.
        good: of these, the samples written to an index.
        left_out: members of indexed shards that no sample uses; each has a row in the report.
        already_good: samples in the indexes of skipped shards.
        seconds: wall time.
        report: path of the report; None when nothing was left to do.
    """

    shards: int = 0
    skipped: int = 0
    failed: int = 0
    samples: int = 0
    good: int = 0
    left_out: int = 0
    already_good: int = 0
    seconds: float = 0.0
    report: str | None = None

    def lines(self) -> list[str]:
        """The summary for people."""
        rate = self.samples / self.seconds if self.seconds else 0.0
        left_out = f"members in no sample: {self.left_out:,}, each named in the report"
        return [
            f"shards: {self.shards:,} indexed, {self.skipped:,} up to date, "
            f"{self.failed:,} unreadable",
            f"samples: {self.good:,} good, {self.samples - self.good:,} rejected "
            f"({self.seconds:.1f} s, {rate:,.0f} samples/s); {self.already_good:,} indexed before",
            *([left_out] if self.left_out else []),
        ]


@dataclass(frozen=True)
class Rule:
    """What a sample must be.

    Attributes:
        limits: image sizes to refuse.
        dali: whether DALI must decode it too.
        fields: which members are image and caption.
    """

    limits: Limits
    dali: bool
    fields: Fields


def _check(shard: str, entries: Sequence[Entry], rule: Rule) -> list[str]:
    """Reasons for the samples of one chunk, '' for good ones."""
    with storage_of(shard).open(shard) as reader:
        images = [read_exactly(reader, e.image_offset, e.image_size, shard) for e in entries]
        captions = [read_exactly(reader, e.caption_offset, e.caption_size, shard) for e in entries]
    reasons = check_images(images, rule.limits, rule.dali)
    if rule.fields.elsewhere:
        return reasons
    return [
        "; ".join(filter(None, (reason, check_caption(caption, rule.fields, entry.caption))))
        for reason, caption, entry in zip(reasons, captions, entries, strict=True)
    ]


def _stamp(path: str) -> tuple[int, int]:
    """What tells that a shard was replaced while it was looked at."""
    try:
        return storage_of(path).size(path), storage_of(path).modified(path)
    except OSError:
        return -1, -1  # the scan has the reason


@dataclass
class _Shard:
    """A shard on its way: its samples, the chunks still out, the verdicts that came back."""

    path: str
    stamp: tuple[int, int]
    found: Contents = field(default_factory=Contents)
    entries: list[Entry] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)
    open_chunks: int = 0


class IndexRun:
    """One indexing run: a bounded number of shards in flight, results taken as they come."""

    def __init__(self, pool: Executor, report: Report, bar: tqdm, rule: Rule) -> None:
        self.pool, self.report, self.bar, self.rule = pool, report, bar, rule
        self.summary = Summary()
        # A scan's value is (shard, None), a chunk's (shard, first sample).
        self.pending: dict[Future[Any], tuple[_Shard, int | None]] = {}
        self.in_flight = 0
        self.failed_paths: set[str] = set()

    def start(self, path: str) -> None:
        """Hand a shard to the workers."""
        self.in_flight += 1
        stamp = _stamp(path)
        future = self.pool.submit(contents, path, self.rule.fields)
        self.pending[future] = (_Shard(path, stamp), None)

    def step(self) -> None:
        """Wait for results and act on them."""
        done, _ = wait(self.pending, return_when=FIRST_COMPLETED)
        for future in done:
            shard, first = self.pending.pop(future)
            try:
                result = future.result()
            except BrokenProcessPool:
                names = ", ".join(sorted({s.path for s, _ in self.pending.values()} | {shard.path}))
                raise RuntimeError(
                    f"a worker process died (out of memory, or a decoder crashed) in one of: "
                    f"{names}; run again with --workers 1 on each of them to see which"
                ) from None
            except (ValueError, OSError) as error:
                self._fail(shard, error)
                continue
            if first is None:
                self._scanned(shard, result)
            else:
                self._checked(shard, first, result)

    def _fail(self, shard: _Shard, error: Exception) -> None:
        if shard.path not in self.failed_paths:
            self.failed_paths.add(shard.path)
            self.summary.failed += 1
            self.in_flight -= 1
            self.report.row(shard.path, "", f"shard is unreadable: {error}")
            tqdm.write(printable(f"unreadable: {error}"), file=sys.stderr)

    def _scanned(self, shard: _Shard, found: Contents) -> None:
        shard.found, samples = found, found.samples
        shard.entries = [sample.entry for sample in samples if sample.entry]
        self.bar.total = (self.bar.total or 0) + len(samples)
        self.bar.update(len(samples) - len(shard.entries))
        for first in range(0, len(shard.entries), _CHUNK):
            chunk = shard.entries[first : first + _CHUNK]
            future = self.pool.submit(_check, shard.path, chunk, self.rule)
            self.pending[future] = (shard, first)
            shard.open_chunks += 1
        if not shard.open_chunks:
            self._finish(shard)

    def _checked(self, shard: _Shard, first: int, reasons: list[str]) -> None:
        shard.reasons.update({first + i: reason for i, reason in enumerate(reasons) if reason})
        shard.open_chunks -= 1
        self.bar.update(len(reasons))
        if not shard.open_chunks and shard.path not in self.failed_paths:
            self._finish(shard)

    def _finish(self, shard: _Shard) -> None:
        if _stamp(shard.path) != shard.stamp:
            why = f"shard {shard.path!r} was written to while it was indexed: index it again"
            self._fail(shard, ValueError(why))
            return
        good = [entry for i, entry in enumerate(shard.entries) if i not in shard.reasons]
        reason_of = {id(shard.entries[i]): reason for i, reason in shard.reasons.items()}
        found = shard.found
        for note in found.notes:
            self.report.row(shard.path, "", note)
        for sample in found.samples:
            reason = reason_of.get(id(sample.entry)) if sample.entry else sample.problem
            if reason:
                self.report.row(shard.path, sample.key, reason)
        for name, why in found.left_out:
            self.report.row(shard.path, name, why)
        if not found.samples:
            self.report.row(shard.path, "", "shard holds no file with an extension")
        # Written even without a good sample: with no index the shard would be scanned, and trained
        # on unchecked.
        write_index(shard.path, good, self.rule.fields)
        self.summary.shards += 1
        self.summary.samples += len(found.samples)
        self.summary.left_out += len(found.left_out)
        self.summary.good += len(good)
        self.in_flight -= 1

    def drive(self, todo: Sequence[str], at_once: int) -> None:
        """Index all of `todo`, with at most `at_once` shards in flight."""
        waiting = iter(todo)
        while True:
            while self.in_flight < at_once and (shard := next(waiting, None)) is not None:
                self.start(shard)
            if not self.pending:
                return
            self.step()
