"""Pack images and captions into webdataset shards with their indexes.

    python -m clipfast.data.pack photos/captions.csv --output shards --max-side 512
    python -m clipfast.data.pack photos --output shards        # a.jpg beside a.txt, all folders

Every row of a table, and every file of a folder, is packed, named in the report or counted there.
The same input, options and seed give the same bytes: names are counted, times are zero, and the
order depends on the seed alone, not on the number of workers.
"""

import random
import sys
import time
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import islice

from tqdm import tqdm

from clipfast.data.check import Limits, check_caption, check_images
from clipfast.data.command import fail, path_of, run_command
from clipfast.data.encode import Encoding, encode_image
from clipfast.data.fields import FIELDS, clean_caption
from clipfast.data.packitem import CaptionLists, Item, TableOptions
from clipfast.data.packlist import list_items
from clipfast.data.packnext import check_folder, next_command
from clipfast.data.reasons import Reasons
from clipfast.data.report import PACK_REPORT, Report, printable
from clipfast.data.shardwriter import ShardWriter
from clipfast.data.workers import make_executor
from clipfast.storage import storage_of
from clipfast.storage.paths import join, split, split_extension

# Images per task; few, because each result travels back whole.
_CHUNK = 16


@dataclass
class PackSummary:
    """What a packing run did: totals, wall time in seconds, path of the report, why items were
    left out."""

    shards: int = 0
    samples: int = 0
    rejected: int = 0
    image_bytes: int = 0
    seconds: float = 0.0
    report: str = ""
    reasons: Reasons = field(default_factory=Reasons)


@dataclass(frozen=True)
class _Packed:
    """One item after the work on it: bytes to store, or the reason why there are none."""

    image: bytes = b""
    extension: str = ""
    caption: bytes = b""
    reason: str = ""


def _pack_chunk(
    items: Sequence[Item], encoding: Encoding, limits: Limits, dali: bool
) -> list[_Packed]:
    packed = [_pack_item(item, encoding, limits) for item in items]
    good = [i for i, one in enumerate(packed) if not one.reason]
    reasons = check_images([packed[i].image for i in good], limits, dali)
    for i, reason in zip(good, reasons, strict=True):
        if reason:
            packed[i] = _Packed(reason=reason)
    return packed


def _pack_item(item: Item, encoding: Encoding, limits: Limits) -> _Packed:
    try:
        caption = item.caption
        if caption is None:
            caption = storage_of(item.caption_file).read(item.caption_file)
        reason = check_caption(caption)
        if reason:
            return _Packed(reason=reason)
        text = clean_caption(FIELDS.texts(caption)[0])
        data = _read(item.image)
        image, extension = encode_image(data, encoding, limits)
    except OSError as error:
        hint = "; paths are written with / here" if "\\" in item.image else ""
        return _Packed(reason=f"file is unreadable: {error.strerror or error}{hint}")
    except ValueError as error:
        return _Packed(reason=str(error))
    return _Packed(image, extension, text.encode())


def _read(path: str) -> bytes:
    """A file's bytes; a pipe or a device, which may never end, is none.

    Raises:
        OSError: it cannot be read.
    """
    storage = storage_of(path)
    if storage.exists(path) and not storage.is_file(path):
        raise OSError(f"{split(path)[1]!r} is a folder, a pipe or a device")
    return storage.read(path)


def _results(
    items: Sequence[Item], encoding: Encoding, limits: Limits, workers: int | None, dali: bool
) -> Generator[tuple[Item, _Packed], None, None]:
    """Pack items on all workers and yield them in order, with a bounded number in flight."""
    pool, workers = make_executor(workers)
    chunks = (items[i : i + _CHUNK] for i in range(0, len(items), _CHUNK))
    queue: deque[tuple[Sequence[Item], Future[list[_Packed]]]] = deque()
    with pool:
        try:
            while True:
                for chunk in islice(chunks, 4 * workers - len(queue)):
                    task = pool.submit(_pack_chunk, chunk, encoding, limits, dali)
                    queue.append((chunk, task))
                if not queue:
                    return
                chunk, task = queue.popleft()
                yield from zip(chunk, task.result(), strict=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _prepare_output(output: str, force: bool) -> None:
    storage = storage_of(output)
    storage.make_folder(output)
    storage.remove_leftovers(output)
    present = sorted(each.name for each in storage.list(output) if each.name.endswith(".tar"))
    if present and not force:
        raise FileExistsError(
            f"{output!r} already holds {len(present)} shards ({present[0]}, ...); give another "
            "--output, or --force to replace them"
        )


def _remove_leftovers(output: str, shards: int) -> None:
    """Delete shards of an earlier run beyond the new last one, which would mix two data sets."""
    storage = storage_of(output)
    for each in storage.list(output):
        stem, extension = split_extension(each.name)
        numbered = stem.isdigit() and len(stem) >= 5
        if extension in (".tar", ".idx") and numbered and int(stem) >= shards:
            storage.remove(join(output, each.name))


def pack_items(
    items: Sequence[Item],
    rejected: Sequence[tuple[str, str]],
    output: str,
    encoding: Encoding | None = None,
    shard_size: int = 10_000,
    shuffle_seed: int | None = 0,
    workers: int | None = None,
    force: bool = False,
    limits: Limits | None = None,
    dali: bool = True,
    progress: bool = True,
    notes: Sequence[tuple[str, str]] = (),
) -> PackSummary:
    """Write shards, their indexes and a report of what was left out.

    Args:
        items: what to pack, from `list_items`.
        rejected: (source, reason) of what `list_items` left out, for the report.
        output: folder of the shards; made if missing.
        encoding: how images are stored.
        shard_size: samples per shard; only good ones count, so all shards but the last are full.
        shuffle_seed: seed of the order; None keeps the order of `items`.
        workers: processes; default all cores.
        force: replace shards in `output`.
        limits: image sizes to refuse.
        dali: decode with DALI too.
        progress: show a bar on a terminal's stderr.
        notes: (source, what it is) of what is no sample, for the report alone.

    Returns:
        The totals.

    Raises:
        FileExistsError: `output` holds shards and `force` is off.
    """
    began = time.perf_counter()
    writer = ShardWriter(output, shard_size)
    _prepare_output(output, force)
    items = list(items)
    if shuffle_seed is not None:
        random.Random(shuffle_seed).shuffle(items)
    summary = PackSummary(rejected=len(rejected), report=join(output, PACK_REPORT))
    results = _results(items, encoding or Encoding(), limits or Limits(), workers, dali)
    try:
        with (
            Report(summary.report, "source", "reason") as report,
            tqdm(total=len(items), unit="sample", disable=None if progress else True) as bar,
        ):
            for source, note in notes:
                report.row(source, note)
            for source, reason in rejected:
                report.row(source, reason)
                summary.reasons.add(source, reason)
            for item, one in results:
                bar.update()
                if one.reason:
                    summary.rejected += 1
                    report.row(item.source, one.reason)
                    summary.reasons.add(item.source, one.reason)
                else:
                    writer.add(one.image, one.extension, one.caption)
                    summary.image_bytes += len(one.image)
            writer.finish()
    finally:
        results.close()
        writer.abort()
    # A run that packed nothing replaces nothing.
    if force and writer.shards:
        _remove_leftovers(output, writer.shards)
    summary.shards, summary.samples = writer.shards, writer.samples
    summary.seconds = time.perf_counter() - began
    return summary


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    import tyro

    def pack(
        source: tyro.conf.Positional[str],
        output: str,
        images: str | None = None,
        image_column: str | None = None,
        caption_column: str | None = None,
        separator: str | None = None,
        quote: str | None = None,
        encoding: str | None = None,
        caption_lists: CaptionLists = "report",
        max_side: int | None = None,
        quality: int | None = None,
        shard_size: int = 10_000,
        shuffle_seed: int | None = 0,
        workers: int | None = None,
        force: bool = False,
        dali: bool = True,
    ) -> int:
        """Pack images and captions into webdataset shards with their indexes.

        Args:
            source: a .csv, .tsv or .jsonl table, or a folder with a .txt beside each image.
            output: folder of the shards; made if missing.
            images: folder that the table's paths start from; default the table's own.
            image_column: column of the image path; default file, filepath, image or path.
            caption_column: column of the caption; default caption, title or text.
            separator: one character between cells, or tab; default the one that fits the names of
                the columns.
            quote: one character around cells that hold separators or line ends, or none where
                quotes are plain letters; default ".
            encoding: of the table, such as utf-16 or cp1252; default what its first bytes tell,
                else UTF-8.
            caption_lists: a row with several captions is reported, packed with its first one, or
                packed once with each.
            max_side: resize images with a longer side, in pixels; default never.
            quality: encode every image anew as JPEG of this quality; default keeps the bytes of
                JPEG, PNG and WebP that need no resize, and encodes the others at 95.
            shard_size: samples per shard.
            shuffle_seed: seed of the order; None keeps it.
            workers: processes; default all cores.
            force: replace the shards in the output folder.
            dali: check the result with DALI's CPU decoder too.
        """
        output = path_of(output)
        check_folder(output)
        options = TableOptions(
            image_column, caption_column, separator, quote, encoding, caption_lists
        )
        listing = list_items(path_of(source), path_of(images) if images else None, options)
        summary = pack_items(
            listing.items,
            listing.rejected,
            output,
            Encoding(max_side, quality),
            shard_size,
            shuffle_seed,
            workers,
            force,
            dali=dali,
            notes=listing.notes,
        )
        rate = summary.samples / summary.seconds
        print(
            f"shards: {summary.shards:,}, samples: {summary.samples:,}, rejected: "
            f"{summary.rejected:,}, images: {summary.image_bytes / 1e6:,.1f} MB "
            f"({summary.seconds:.1f} s, {rate:,.0f} samples/s)\n"
            f"{listing.account(summary.samples)}\nreport: {printable(summary.report)}"
        )
        if not summary.samples:
            hint = f"\n{listing.hint}" if listing.hint else ""
            return fail(summary.reasons.after("no sample is good:") + hint)
        print(f"next: {next_command(output, summary.shards, summary.samples)}")
        return 0

    return run_command(pack, argv, "clipfast.data.pack")


if __name__ == "__main__":
    sys.exit(main())
