"""Check every sample of webdataset shards and index the good ones.

    python -m clipfast.data.index '/data/{00000..41407}.tar'

writes ``X.idx`` beside each ``X.tar``: the samples whose image decodes (Pillow and DALI) and whose
caption is UTF-8 and not empty. Training then never meets a broken file. The rest goes to a report.
"""

import logging
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TextIO

from tqdm import tqdm

from clipfast.data import shards as shards_module
from clipfast.data.check import Limits, check_caption, check_images
from clipfast.data.shards import Entry, Sample, expand, index_path, read_bytes, scan, write_index

REPORT_NAME = "index_report.tsv"
_REPORT_HEADER = "shard\tkey\treason\n"
# Samples a task: long enough to hide the hand-over, short enough to spread one shard over cores.
_CHUNK = 128

_log = logging.getLogger(__name__)


@dataclass
class Summary:
    """What an indexing run did.

    Attributes:
        shards: shards indexed in this run.
        skipped: shards left alone, their index being newer than the tar.
        failed: shards that could not be read; they have no index.
        samples: samples met in indexed shards.
        good: of these, the samples written to an index.
        already_good: samples in the indexes of skipped shards.
        seconds: wall time.
        report: path of the report; None when nothing was left to do.
    """

    shards: int = 0
    skipped: int = 0
    failed: int = 0
    samples: int = 0
    good: int = 0
    already_good: int = 0
    seconds: float = 0.0
    report: str | None = None

    def lines(self) -> list[str]:
        """The summary for people."""
        rate = self.samples / self.seconds if self.seconds else 0.0
        return [
            f"shards: {self.shards:,} indexed, {self.skipped:,} up to date, "
            f"{self.failed:,} unreadable",
            f"samples: {self.good:,} good, {self.samples - self.good:,} rejected "
            f"({self.seconds:.1f} s, {rate:,.0f} samples/s); {self.already_good:,} indexed before",
        ]


class InlineExecutor(Executor):
    """Runs a task at once in this process: one worker without the start of a process."""

    def submit(self, fn, /, *args, **kwargs) -> Future:
        future: Future = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def make_executor(workers: int | None) -> tuple[Executor, int]:
    """An executor of `workers` processes (default: the cores this process may use).

    Processes are spawned, not forked: DALI and Pillow hold threads and locks that a fork copies in
    whatever state they are.
    """
    if workers is None:
        workers = len(os.sched_getaffinity(0))
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}; leave it out for all cores")
    if workers == 1:
        return InlineExecutor(), 1
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")), workers


def clean_field(text: str) -> str:
    """`text` as one field of a report: no tab, no line break, always encodable."""
    return " ".join(text.split()).encode("utf-8", "backslashreplace").decode()


def _scan(shard: str) -> list[Sample]:
    return list(scan(shard))


def _check(shard: str, entries: Sequence[Entry], limits: Limits, dali: bool) -> list[str]:
    """Reasons for the samples of one chunk, '' for good ones."""
    fd = os.open(shard, os.O_RDONLY | os.O_CLOEXEC)
    try:
        images = [read_bytes(fd, e.image_offset, e.image_size, shard) for e in entries]
        captions = [read_bytes(fd, e.caption_offset, e.caption_size, shard) for e in entries]
    finally:
        os.close(fd)
    reasons = check_images(images, limits, dali)
    return [
        "; ".join(filter(None, (reason, check_caption(caption))))
        for reason, caption in zip(reasons, captions, strict=True)
    ]


@dataclass
class _Shard:
    """A shard on its way: its samples, the chunks still out, the verdicts that came back."""

    path: str
    samples: list[Sample] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)
    open_chunks: int = 0


class _Run:
    """One indexing run: a bounded number of shards in flight, results taken as they come."""

    def __init__(
        self, pool: Executor, report: TextIO, bar: tqdm, limits: Limits, dali: bool
    ) -> None:
        self.pool, self.report, self.bar = pool, report, bar
        self.limits, self.dali = limits, dali
        self.summary = Summary()
        # A scan's value is (shard, None), a chunk's (shard, first sample).
        self.pending: dict[Future, tuple[_Shard, int | None]] = {}
        self.in_flight = 0
        self.failed_paths: set[str] = set()

    def start(self, path: str) -> None:
        self.in_flight += 1
        self.pending[self.pool.submit(_scan, path)] = (_Shard(path), None)

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
            self._row(shard.path, "", f"shard is unreadable: {error}")
            tqdm.write(f"unreadable: {error}", file=sys.stderr)

    def _scanned(self, shard: _Shard, samples: list[Sample]) -> None:
        shard.samples = samples
        shard.entries = [sample.entry for sample in samples if sample.entry]
        self.bar.total = (self.bar.total or 0) + len(samples)
        self.bar.update(len(samples) - len(shard.entries))
        for first in range(0, len(shard.entries), _CHUNK):
            chunk = shard.entries[first : first + _CHUNK]
            future = self.pool.submit(_check, shard.path, chunk, self.limits, self.dali)
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
        good = [entry for i, entry in enumerate(shard.entries) if i not in shard.reasons]
        reason_of = {id(shard.entries[i]): reason for i, reason in shard.reasons.items()}
        for sample in shard.samples:
            reason = reason_of.get(id(sample.entry)) if sample.entry else sample.problem
            if reason:
                self._row(shard.path, sample.key, reason)
        if not shard.samples:
            self._row(shard.path, "", "shard holds no file with an extension")
        # Written even without a good sample: with no index the shard would be scanned, and trained
        # on unchecked.
        write_index(shard.path, good)
        self.summary.shards += 1
        self.summary.samples += len(shard.samples)
        self.summary.good += len(good)
        self.in_flight -= 1

    def _row(self, *fields: str) -> None:
        self.report.write("\t".join(map(clean_field, fields)) + "\n")


def _up_to_date(shard: str) -> int | None:
    """Number of good samples if the shard's index is newer than it and readable, else None."""
    index = index_path(shard)
    try:
        if os.stat(index).st_mtime_ns < os.stat(shard).st_mtime_ns:
            return None
        return shards_module.count(shard)
    except (OSError, ValueError):
        return None


def _check_writable(folders: Iterable[str]) -> None:
    for folder in sorted(set(folders)):
        try:
            with tempfile.TemporaryFile(dir=folder or "."):
                pass
        except OSError as error:
            raise PermissionError(
                f"cannot write an index into {folder or '.'!r} ({error.strerror}); an index lies "
                "beside its shard: make the folder writable, or link the shards into one that is "
                "and index them there"
            ) from None


def _old_rows(report: str, skipped: Iterable[str]) -> list[str]:
    """Rows of an earlier report that still hold, those of the shards skipped now."""
    keep = {clean_field(shard) for shard in skipped}
    try:
        with open(report, encoding="utf-8") as file:
            return [line for line in file if line.split("\t", 1)[0] in keep]
    except OSError:
        return []


def index_shards(
    shards: Sequence[str],
    workers: int | None = None,
    report: str | None = None,
    force: bool = False,
    limits: Limits | None = None,
    dali: bool = True,
    progress: bool = True,
) -> Summary:
    """Write the index of every shard, holding its good samples only.

    Args:
        shards: paths, as `expand` returns them.
        workers: processes; default all cores, 1 stays in this process.
        report: path of the report; default `REPORT_NAME` beside the first shard.
        force: also index shards whose index is newer than the tar.
        limits: image sizes to refuse.
        dali: decode with DALI too.
        progress: show a bar on a terminal's stderr.

    Returns:
        The totals. Unreadable shards are counted, reported, and do not stop the run.

    Raises:
        PermissionError: an index cannot be written beside its shard.
        RuntimeError: a worker process died.
    """
    began = time.perf_counter()
    report = report or os.path.join(os.path.dirname(shards[0]), REPORT_NAME)
    good = {} if force else {shard: _up_to_date(shard) for shard in shards}
    skipped = [shard for shard in shards if good.get(shard) is not None]
    todo = [shard for shard in shards if good.get(shard) is None]
    totals = Summary(skipped=len(skipped), already_good=sum(good[shard] or 0 for shard in skipped))
    if not todo:
        return totals
    _check_writable([*map(os.path.dirname, todo), os.path.dirname(report)])
    pool, workers = make_executor(workers)
    partial = f"{report}.{os.getpid()}.partial"
    try:
        with (
            pool,
            open(partial, "w", encoding="utf-8") as file,
            tqdm(unit="sample", unit_scale=True, disable=None if progress else True) as bar,
        ):
            file.write(_REPORT_HEADER)
            file.writelines(_old_rows(report, skipped))
            run = _Run(pool, file, bar, limits or Limits(), dali)
            try:
                _drive(run, todo, at_once=workers + 1)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        os.replace(partial, report)
    finally:
        if os.path.exists(partial):
            os.remove(partial)
    summary = run.summary
    summary.skipped, summary.already_good = totals.skipped, totals.already_good
    summary.seconds, summary.report = time.perf_counter() - began, report
    return summary


def _drive(run: _Run, todo: Sequence[str], at_once: int) -> None:
    waiting = iter(todo)
    while True:
        while run.in_flight < at_once and (shard := next(waiting, None)) is not None:
            run.start(shard)
        if not run.pending:
            return
        run.step()


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    import tyro

    def index(
        shards: tyro.conf.Positional[tuple[str, ...]],
        workers: int | None = None,
        report: Path | None = None,
        force: bool = False,
        dali: bool = True,
        limits: Annotated[Limits, tyro.conf.arg(name="")] = Limits(),  # noqa: B008
    ) -> int:
        """Check every sample of webdataset shards and index the good ones.

        Writes X.idx beside each X.tar (DALI webdataset index v1.2) and a report of what was
        rejected and why. Exit status 1: no good sample, or an unreadable shard.

        Args:
            shards: paths, {00000..41407} ranges, {a,b} lists, globs, or 'sample'.
            workers: processes; default all cores.
            report: path of the report; default index_report.tsv beside the first shard.
            force: also index shards whose index is newer than the tar.
            dali: decode with DALI's CPU decoder too, as training will.
            limits: image sizes to refuse.
        """
        summary = index_shards(
            expand(shards), workers, str(report) if report else None, force, limits, dali
        )
        print("\n".join(summary.lines()))
        if summary.report:
            print(f"report: {summary.report}")
        if not summary.good + summary.already_good:
            print("error: no sample is good; the report gives the reasons", file=sys.stderr)
            return 1
        if summary.failed:
            print(
                f"error: {summary.failed} shards are unreadable; replace them or leave them "
                "out of the training pattern",
                file=sys.stderr,
            )
            return 1
        return 0

    try:
        return tyro.cli(index, args=argv, prog="python -m clipfast.data.index")
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
