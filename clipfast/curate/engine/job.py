"""One run of a step over items."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool

from tqdm import tqdm

from clipfast.curate.engine.engines import open_engine
from clipfast.curate.engine.parts import ENDING, arrow, digest, write_table
from clipfast.curate.engine.step import Item, ItemT, Step
from clipfast.storage import storage_of
from clipfast.storage.paths import join

# Tasks handed out per worker, so that none waits.
_AHEAD = 4


def run(
    step: Step[ItemT],
    items: Sequence[ItemT],
    folder: str,
    engine: str = "pool",
    workers: int | None = None,
) -> list[str]:
    """Make the partial results that are not there yet.

    They lie in ``FOLDER/STEP-DIGEST``, whose digest is of the step's options.

    Args:
        step: what is done.
        items: with what.
        folder: of the results; one that all workers see.
        engine: "pool", "ray" or "ray:ADDRESS".
        workers: at a time; None: as many as there are cores.

    Returns:
        Paths of the partial results, in the order of the items' names.

    Raises:
        ValueError: two items have one name, or an item cannot be read.
        OSError: a file cannot be read or written.
        RuntimeError: a worker died.
    """
    arrow()
    place = join(folder, f"{step.name}-{digest([step.name, step.options()])}")
    paths = {item.part: join(place, item.part + ENDING) for item in items}
    if len(paths) < len(items):
        raise ValueError(f"two of {len(items):,} items of step {step.name} have one name")
    storage = storage_of(place)
    storage.make_folder(place)
    storage.remove_leftovers(place)
    there = {listed.name for listed in storage.list(place)}
    todo = [item for item in items if item.part + ENDING not in there]
    with tqdm(
        total=len(items), initial=len(items) - len(todo), desc=step.name, disable=None
    ) as bar:
        if todo:
            pool, count = open_engine(engine, workers, len(todo))
            try:
                _drive(step, todo, paths, pool, _AHEAD * count, bar)
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
    return [paths[name] for name in sorted(paths)]


def _drive(
    step: Step[ItemT],
    todo: Sequence[ItemT],
    paths: dict[str, str],
    pool: Executor,
    at_once: int,
    bar: tqdm,
) -> None:
    waiting = iter(todo)
    pending: dict[Future[None], Item] = {}
    while True:
        while len(pending) < at_once and (item := next(waiting, None)) is not None:
            pending[pool.submit(make_part, step, item, paths[item.part])] = item
        if not pending:
            return
        done, _ = wait(pending, return_when=FIRST_COMPLETED)
        for future in done:
            try:
                future.result()
            except BrokenProcessPool:
                names = ", ".join(sorted(item.part for item in pending.values()))
                raise RuntimeError(
                    f"a worker process died (out of memory, or a decoder crashed) in one of: "
                    f"{names}; run again with --workers 1 to see which: what is done stays"
                ) from None
            del pending[future]
            bar.update()


def make_part(step: Step[ItemT], item: ItemT, path: str) -> None:
    """What a worker does: one partial result, put in place whole."""
    write_table(path, step.table(item))
