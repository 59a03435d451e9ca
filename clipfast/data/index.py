"""Check every sample of webdataset shards and index the good ones.

    python -m clipfast.data.index '/data/{00000..41407}.tar'

writes ``X.idx`` beside each ``X.tar``: the samples whose image decodes (Pillow and DALI) and whose
caption is UTF-8 and not empty. Training then never meets a broken file. The rest goes to a report.
"""

import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Annotated

from tqdm import tqdm

from clipfast.data.check import Limits
from clipfast.data.command import fail, path_of, run_command
from clipfast.data.fields import FIELDS, Fields
from clipfast.data.indexfile import check_index, index_path
from clipfast.data.indexrun import IndexRun, Rule, Summary
from clipfast.data.patterns import expand
from clipfast.data.reasons import reasons_of
from clipfast.data.report import INDEX_REPORT, Report, printable, read_rows
from clipfast.data.workers import make_executor
from clipfast.files import explain
from clipfast.storage import storage_of
from clipfast.storage.paths import join, split

# The time is the file system's latency.
_LOOKED_AT_TOGETHER = 16


def _up_to_date(shard: str, fields: Fields) -> int | None:
    """Number of good samples if the shard's index is newer than it and fits it, else None."""
    storage = storage_of(shard)
    try:
        if storage.modified(index_path(shard)) < storage.modified(shard):
            return None
        return check_index(shard, fields)
    except (OSError, ValueError):
        return None


def _check_writable(folders: Iterable[str]) -> None:
    for folder in sorted(set(folders)):
        try:
            storage_of(folder).check_writable(folder)
        except OSError as error:
            raise PermissionError(
                f"cannot write an index into {explain(error, folder or '.')}; an "
                "index lies beside its shard: make the folder writable, or link the shards into "
                "one that is and index them there"
            ) from None


def index_shards(
    shards: Sequence[str],
    workers: int | None = None,
    report: str | None = None,
    force: bool = False,
    limits: Limits | None = None,
    dali: bool = True,
    progress: bool = True,
    fields: Fields = FIELDS,
) -> Summary:
    """Write the index of every shard, holding its good samples only.

    Args:
        shards: paths, as `expand` returns them.
        workers: processes; default all cores, 1 stays in this process.
        report: path of the report; default `INDEX_REPORT` beside the first shard.
        force: also index shards whose index is newer than the tar and fits it.
        limits: image sizes to refuse.
        dali: decode with DALI too.
        progress: show a bar on a terminal's stderr.
        fields: which members of a sample are image and caption.

    Returns:
        The totals. Unreadable shards are counted, reported, and do not stop the run.

    Raises:
        PermissionError: an index cannot be written beside its shard.
        RuntimeError: a worker process died.
    """
    began = time.perf_counter()
    report = report or join(split(shards[0])[0], INDEX_REPORT)
    for folder in sorted({split(path)[0] for path in [*shards, report]}):
        storage_of(folder).remove_leftovers(folder)
    good: dict[str, int | None] = {}
    if not force:
        with ThreadPoolExecutor(_LOOKED_AT_TOGETHER) as threads:
            looked = threads.map(partial(_up_to_date, fields=fields), shards)
            good = dict(zip(shards, looked, strict=True))
    skipped = [shard for shard in shards if good.get(shard) is not None]
    todo = [shard for shard in shards if good.get(shard) is None]
    totals = Summary(skipped=len(skipped), already_good=sum(good[shard] or 0 for shard in skipped))
    if not todo:
        return totals
    _check_writable(split(path)[0] for path in [*todo, report])
    old_rows = read_rows(report, skipped)
    pool, workers = make_executor(workers)
    with (
        pool,
        Report(report, "shard", "key", "reason") as rows,
        tqdm(unit="sample", unit_scale=True, disable=None if progress else True) as bar,
    ):
        for line in old_rows:
            rows.line(line)
        run = IndexRun(pool, rows, bar, Rule(limits or Limits(), dali, fields))
        try:
            run.drive(todo, at_once=workers + 1)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    summary = run.summary
    summary.skipped, summary.already_good = totals.skipped, totals.already_good
    summary.seconds, summary.report = time.perf_counter() - began, report
    return summary


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    import tyro

    def index(
        shards: tyro.conf.Positional[tuple[str, ...]],
        workers: int | None = None,
        report: str | None = None,
        force: bool = False,
        dali: bool = True,
        captions: tuple[str, ...] = FIELDS.captions,
        limits: Annotated[Limits, tyro.conf.arg(name="")] = Limits(),  # noqa: B008
    ) -> int:
        """Check every sample of webdataset shards and index the good ones.

        Writes X.idx beside each X.tar (DALI webdataset index v1.2) and a report of what was
        rejected and why. Exit status 1: no good sample, or an unreadable shard.

        Args:
            shards: paths, {00000..41407} ranges, {a,b} lists, globs, or 'sample'.
            workers: processes; default all cores.
            report: path of the report; default index_report.tsv beside the first shard.
            force: also index shards whose index is newer than the tar and fits it.
            dali: decode with DALI's CPU decoder too, as training will.
            captions: where captions are, as --data.captions of training takes it.
            limits: image sizes to refuse.
        """
        paths = expand(shards)
        report = path_of(report) if report else None
        fields = Fields(captions=captions)
        summary = index_shards(paths, workers, report, force, limits, dali, fields=fields)
        print("\n".join(summary.lines()))
        if summary.report:
            print(f"report: {printable(summary.report)}")
        if not summary.good + summary.already_good:
            reasons = reasons_of(paths, [report] if report else [])
            return fail(reasons.after("no sample is good:"))
        if summary.failed:
            return fail(
                f"{summary.failed} shards are unreadable; replace them or leave them out of the "
                "training pattern"
            )
        return 0

    return run_command(index, argv, "clipfast.data.index")


if __name__ == "__main__":
    sys.exit(main())
