"""The samples of shards, read in any order, by any thread."""

import contextvars
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Lock

import numpy as np
import torch

from clipfast.arguments import whole_number
from clipfast.data.captions import draws, pick, saying
from clipfast.data.check import Limits, check_header, check_size, why_empty
from clipfast.data.content import caption_id, image_id
from clipfast.data.encoded import WHOLE, EncodedBatch, Fill, Request, encode
from clipfast.data.fields import FIELDS, Fields, check_fields
from clipfast.data.indexfile import INDEX_COMMAND
from clipfast.data.order import SampleRefs
from clipfast.data.plain import plain_size
from clipfast.data.prepare import prepare
from clipfast.data.report import printable
from clipfast.data.scaled import decode_scaled
from clipfast.data.selection import ShardChoice, choose
from clipfast.data.shardfiles import Piece, ShardFiles
from clipfast.data.sidecar import Captions
from clipfast.data.table import Table, read_table
from clipfast.storage import Stat, storage_of

# Samples of all tables that are kept in memory, 25 bytes each. A selection leaves little of a
# table, and a window of shuffling then has many shards.
_KEPT_SAMPLES = 2_560_000
_TABLES_AT_ONCE = 16
_CONTEXT = "start, end and a token of the caption"
_LIMITS = Limits()
# Stands where a broken image is; it is never decoded.
_NOTHING = np.empty(0, np.uint8)


@dataclass(frozen=True)
class Files:
    """What some samples hold.

    Attributes:
        images: N arrays uint8, as ``clipfast.data.prepare`` gives them.
        fills: N parts of their height and width, see ``clipfast.data.encoded.EncodedBatch``.
        captions: N texts.
        faults: why samples are broken, by their rows.
        content: ``[N, 2]``, ids of the picture's file and of the caption's words, where asked for.
        every: with them, all captions of each sample that say something.
    """

    images: list[np.ndarray]
    fills: list[Fill]
    captions: list[str]
    faults: dict[int, str]
    content: list[tuple[int, int]]
    every: list[list[str]]


class ShardReader:
    """Random access to the samples of a list of shards; safe to share between threads.

    Args:
        shards: paths of tars.
        context_length: tokens that a caption is cut to.
        fields: which members of a sample are image and caption.
        least_side: pixels that the short side of an image must have at the least: large JPEGs are
            then decoded in a smaller size (``clipfast.data.scaled``). None: all are left alone.
        threads: that decode so, beside the one that reads.
        choices: what a selection keeps of each shard; rows then count what is kept. None: all.
        caption_seed: of several captions of an image one is drawn in each epoch
            (``clipfast.data.captions``). None: the first that says something.
        captions: those that stand in tables; samples without one are not there. None: all stand in
            the tars.

    Raises:
        TypeError: an argument is of another kind; a ``ValueError`` too.
        ValueError: `context_length` is below 3.
    """

    def __init__(
        self,
        shards: Sequence[str],
        context_length: int = 77,
        fields: Fields = FIELDS,
        *,
        least_side: float | None = None,
        threads: int = 1,
        choices: Sequence[ShardChoice | None] | None = None,
        caption_seed: int | None = None,
        captions: Captions | None = None,
    ) -> None:
        self.shards = list(shards)
        self.context_length = whole_number("context_length", context_length, 3, why=_CONTEXT)
        self.fields = check_fields(fields)
        self._files = ShardFiles(self.shards)
        self._tables: OrderedDict[int, Table] = OrderedDict()
        self._kept_samples = 0
        # Whoever reads a table now holds the lock of its shard.
        self._doors: dict[int, Lock] = {}
        self._keys: tuple[int, list[str]] = (-1, [])
        self._lock = Lock()
        self._choices = choices
        self._caption_seed = caption_seed
        self._captions = captions
        self._least_side = least_side
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None

    def table(self, shard: int) -> Table:
        """The table of a shard, from memory or from its index. Threads that ask together read it
        once."""
        if (table := self._table_in_memory(shard)) is not None:
            return table
        with self._lock:
            door = self._doors.setdefault(shard, Lock())
        with door:
            if (table := self._table_in_memory(shard)) is None:
                table = self._read_table(shard)
                self._keep_table(shard, table)
        return table

    def _table_in_memory(self, shard: int) -> Table | None:
        with self._lock:
            if shard in self._tables:
                self._tables.move_to_end(shard)
                return self._tables[shard]
        return None

    def _read_table(self, shard: int) -> Table:
        # Before its index is compared with it: what is read later is then what was compared.
        if storage_of(self.shards[shard]).is_remote:
            self._files.hold(shard)
        fields = self.fields
        if self._captions is not None:
            fields = self._captions.fields(shard, fields)
        table = read_table(self.shards[shard], fields)
        if self._choices is not None:
            choice = self._choices[shard]
            table = table.take(choice or choose(table.shard, len(table), table.mark, []))
        if self._captions is not None:
            table = self._captions.only_usable(shard, table)
        return table

    def _keep_table(self, shard: int, table: Table) -> None:
        with self._lock:
            self._doors.pop(shard, None)
            self._tables[shard] = table
            self._kept_samples += len(table)
            while self._kept_samples > _KEPT_SAMPLES and len(self._tables) > 1:
                self._kept_samples -= len(self._tables.popitem(last=False)[1])

    def version(self, shard: int) -> Stat:
        """Which version of a shard is read."""
        return self._files.version(shard)

    def ranges(self, shard: int) -> np.ndarray:
        """Where that lies which is read of a shard: pictures, and captions that stand in the tar.

        Args:
            shard: its position.

        Returns:
            ``[N, 2]`` int64, offset and size, in no order.

        Raises:
            ValueError: the shard or its index is unfit.
            OSError: one of them cannot be read.
        """
        table = self.table(shard)
        captions = np.stack([table.caption_offset, table.caption_size.astype(np.int64)], 1)
        if self._captions is not None:
            captions = captions[self._captions.in_tar(shard, table)]
        images = np.stack([table.image_offset, table.image_size.astype(np.int64)], 1)
        return np.concatenate([images, captions])

    def image(self, shard: int, row: int) -> bytes:
        """The bytes of one image file.

        Raises:
            IndexError: there is no such row.
            ValueError: the shard ends before, or its index does not fit it.
            OSError: it cannot be read.
        """
        return self._image(self._table_with(shard, row), shard, row)

    def caption(self, shard: int, row: int) -> str:
        """One caption: of several the one that a selection names, else the first that says
        something.

        Raises:
            IndexError: there is no such row.
            ValueError: it is no UTF-8 or has no text, and names shard and sample; or as ``image``.
            OSError: the shard cannot be read.
        """
        table = self._table_with(shard, row)
        try:
            return pick(self._all_texts(table, shard, row), None, _chosen(table, row))
        except ValueError as error:
            raise self.broken(shard, row, str(error)) from None

    def captions(self, shard: int, row: int) -> list[str]:
        """All captions of a sample that say something; or the first where none does.

        Raises:
            IndexError, ValueError, OSError: as ``caption``.
        """
        table = self._table_with(shard, row)
        try:
            texts = self._all_texts(table, shard, row)
            if (chosen := _chosen(table, row)) >= 0:
                return [pick(texts, None, chosen)]
        except ValueError as error:
            raise self.broken(shard, row, str(error)) from None
        return saying(texts)

    def key(self, shard: int, row: int) -> str:
        """The key of a sample."""
        with self._lock:
            known, keys = self._keys
        if known != shard:
            keys = self.table(shard).keys()
            with self._lock:
                self._keys = shard, keys
        return keys[row]

    def broken(self, shard: int, row: int, reason: str) -> ValueError:
        """The error for a sample that is not fit for training: which one, why, and what to do.

        Args:
            shard: its shard.
            row: its row in that shard.
            reason: why, beginning with what is unfit, "caption" or "image".
        """
        caption = reason.startswith("caption")
        what = "cannot read the caption of " if caption else "cannot decode the image of "
        path = self.shards[shard]
        name = printable(f"sample '{self.key(shard, row)}' of shard {path}: {reason}")
        return ValueError(
            f"{what}{name}. Make an index that leaves such samples out, then resume: "
            f"{INDEX_COMMAND} {path}; or pass --data.on-error skip"
        )

    def read(
        self, request: Request, *, with_content: bool = False, strict: bool = True
    ) -> EncodedBatch:
        """Fetch the images and captions of a request and tokenize the captions.

        Args:
            request: which samples.
            with_content: whether the batch says which pictures and captions are the same, and has
                all captions.
            strict: a broken sample is an error; else it is among the batch's faults.

        Raises:
            ValueError: a sample is broken; names it.
        """
        files = self.fetch(request.samples, with_content, request.epoch)
        for i, reason in files.faults.items() if strict else ():
            raise self.broken(int(request.samples.shard[i]), int(request.samples.row[i]), reason)
        batch = encode(request, files.images, files.fills, files.captions, self.context_length)
        content = torch.tensor(files.content, dtype=torch.int64) if with_content else None
        every = files.every if with_content else None
        return replace(batch, faults=files.faults, content=content, every=every)

    def fetch(self, samples: SampleRefs, with_content: bool = False, epoch: int = 0) -> Files:
        """What samples hold, and which are broken.

        Args:
            samples: N references.
            with_content: whether to tell which pictures and captions are the same, and all
                captions.
            epoch: that they are read in, where one of several captions is drawn.

        Raises:
            IndexError: there is no such row.
            ValueError: a shard ends before, or its index does not fit it.
            OSError: a shard cannot be read.
        """
        files = Files([], [], [], {}, [], [])
        places = list(zip(samples.shard.tolist(), samples.row.tolist(), strict=True))
        self._meet({shard for shard, _ in places})
        tables = [self._table_with(*place) for place in places]
        named = list(zip(tables, places, strict=True))
        known = [self._known(table, *place) for table, place in named]
        wanted = [_image_of(table, *place) for table, place in named]
        wanted += [
            _caption_of(table, *place)
            for (table, place), texts in zip(named, known, strict=True)
            if not texts
        ]
        pieces = self._files.read_many(wanted)
        read, words = pieces[: len(places)], iter(pieces[len(places) :])
        fits = self._fits(read, [table.checked for table in tables])
        drawn: list[int | None] = [None] * len(places)
        if self._caption_seed is not None:
            drawn = [*draws(self._caption_seed, epoch, samples).tolist()]
        for i, (table, data, texts, draw, (image, fill, why_image)) in enumerate(
            zip(tables, read, known, drawn, fits, strict=True)
        ):
            given: bytes | list[str] = texts if texts else next(words)
            caption, every, why_caption = _text(given, table, draw, _chosen(table, places[i][1]))
            files.images.append(image)
            files.fills.append(fill)
            files.captions.append(caption)
            if why_image or why_caption:
                files.faults[i] = "; ".join(filter(None, (why_image, why_caption)))
            elif with_content:
                files.content.append((image_id(data), caption_id(caption)))
                files.every.append(every)
        return files

    def close(self) -> None:
        """Close the shards and end threads; the next read opens them again."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)
        self._files.close()

    def _fits(
        self, images: Sequence[bytes], checked: Sequence[bool]
    ) -> Iterable[tuple[np.ndarray, Fill, str]]:
        least_sides = [self._least_side] * len(images)
        if self._least_side is None:
            return map(_fit, images, checked, least_sides)
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="clipfast-scale")
            pool = self._pool
        return pool.map(_fit, images, checked, least_sides)

    def _table_with(self, shard: int, row: int) -> Table:
        table = self.table(shard)
        # A negative one would be counted from the end.
        if not 0 <= row < len(table):
            raise IndexError(
                f"shard {self.shards[shard]} holds {len(table):,} samples, and row {row:,} was "
                "asked for; where that was there, it or its index has changed since"
            )
        return table

    def _meet(self, shards: set[int]) -> None:
        """Read the tables of shards in stores that are not known yet, many at a time."""
        with self._lock:
            new = [shard for shard in sorted(shards) if shard not in self._tables]
        far = [shard for shard in new if storage_of(self.shards[shard]).is_remote]
        if len(far) > 1:
            with ThreadPoolExecutor(min(len(far), _TABLES_AT_ONCE)) as pool:
                tasks = [
                    pool.submit(contextvars.copy_context().run, self.table, shard) for shard in far
                ]
                for task in tasks:
                    task.result()

    def _image(self, table: Table, shard: int, row: int) -> bytes:
        return self._files.pread(*_image_of(table, shard, row))

    def _known(self, table: Table, shard: int, row: int) -> list[str]:
        """The captions of a sample that stand in a table; none where they stand in the tar."""
        if self._captions is None:
            return []
        return self._captions.texts(shard, row if table.rows is None else int(table.rows[row]))

    def _all_texts(self, table: Table, shard: int, row: int) -> list[str]:
        """All captions of a sample, wherever they stand."""
        if texts := self._known(table, shard, row):
            return texts
        data = self._files.pread(*_caption_of(table, shard, row))
        return table.fields.texts(data, table.caption)


def _image_of(table: Table, shard: int, row: int) -> Piece:
    return Piece(shard, int(table.image_offset[row]), int(table.image_size[row]))


def _caption_of(table: Table, shard: int, row: int) -> Piece:
    return Piece(shard, int(table.caption_offset[row]), int(table.caption_size[row]))


def _text(
    given: bytes | list[str], table: Table, draw: int | None, chosen: int
) -> tuple[str, list[str], str]:
    """A caption of a member or of some texts, all that may be it, and why it is unfit."""
    try:
        texts = given if isinstance(given, list) else table.fields.texts(given, table.caption)
        text = pick(texts, draw, chosen)
    except ValueError as error:
        return "", [], str(error)
    # An index does not say which key of a JSON it was made for.
    is_checked = table.checked and table.caption == "txt" and not table.fields.elsewhere
    every = [text] if chosen >= 0 else saying(texts)
    return text, every, "" if is_checked else why_empty(text)


def _chosen(table: Table, row: int) -> int:
    return -1 if table.chosen is None else int(table.chosen[row])


def _fit(data: bytes, checked: bool, least_side: float | None) -> tuple[np.ndarray, Fill, str]:
    """An image as the decoder takes it, or why it is unfit, found without decoding a plain one that
    keeps its size."""
    size = plain_size(data) if least_side or not checked else None
    if not checked:
        reason = check_size(size, _LIMITS) if size else check_header(data, _LIMITS)
        if reason:
            return _NOTHING, WHOLE, reason
    try:
        if least_side and size:
            scaled = decode_scaled(data, size, least_side)
            if scaled is not None:
                return *scaled, ""
        return np.frombuffer(data, np.uint8) if size else prepare(data), WHOLE, ""
    except ValueError as error:
        return _NOTHING, WHOLE, str(error)
