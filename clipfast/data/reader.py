"""Encoded batches, read from shards by background threads ahead of the decoder."""

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from clipfast.arguments import WrongKindError, describe, whole_number
from clipfast.data.content import caption_id, image_id
from clipfast.data.fields import FIELDS, Fields
from clipfast.data.indexfile import INDEX_COMMAND
from clipfast.data.order import SampleRefs
from clipfast.data.prepare import prepare
from clipfast.data.shardfiles import ShardFiles
from clipfast.data.table import Table, read_table
from clipfast.tokenizer import tokenize_with_lengths

_KEPT_TABLES = 256
_CONTEXT = "start, end and a token of the caption"


@dataclass(frozen=True)
class Request:
    """What one batch is made of.

    Attributes:
        samples: B references.
        crops: ``[B, 3]`` float32: side of the square as a fraction of the short side, then the
            vertical and horizontal place of the square in what is left over, each in [0, 1].
        epoch: the epoch the batch belongs to.
        index: the batch's number in its epoch.
    """

    samples: SampleRefs
    crops: np.ndarray
    epoch: int = 0
    index: int = 0


@dataclass(frozen=True)
class EncodedBatch:
    """Bytes of images and tokens of captions of one request.

    Attributes:
        request: what was asked for.
        images: B arrays uint8, each a whole image file.
        tokens: ``[B, L]`` int64 on the CPU, cut to the longest caption.
        lengths: ``[B]`` int64, tokens up to and including end-of-text.
        content: ``[B, 2]`` int64, ids of picture and caption (``clipfast.data.content``), where
            they were asked for.
    """

    request: Request
    images: list[np.ndarray]
    tokens: Tensor
    lengths: Tensor
    content: Tensor | None = None


class ShardReader:
    """Random access to the samples of a list of shards; safe to share between threads.

    Args:
        shards: paths of tars.
        context_length: tokens that a caption is cut to.
        fields: which members of a sample are image and caption.

    Raises:
        TypeError: an argument is of another kind; a ``ValueError`` too.
        ValueError: `context_length` is below 3.
    """

    def __init__(
        self, shards: Sequence[str], context_length: int = 77, fields: Fields = FIELDS
    ) -> None:
        self.shards = list(shards)
        self.context_length = whole_number("context_length", context_length, 3, why=_CONTEXT)
        if not isinstance(fields, Fields):
            raise WrongKindError(f"fields must be Fields; got {describe(fields)}")
        self.fields = fields
        self._files = ShardFiles(self.shards)
        self._tables: OrderedDict[int, Table] = OrderedDict()
        self._lock = Lock()

    def table(self, shard: int) -> Table:
        """The table of a shard, from memory or from its index."""
        with self._lock:
            if shard in self._tables:
                self._tables.move_to_end(shard)
                return self._tables[shard]
        table = read_table(self.shards[shard], self.fields)
        with self._lock:
            self._tables[shard] = table
            while len(self._tables) > _KEPT_TABLES:
                self._tables.popitem(last=False)
        return table

    def image(self, shard: int, row: int) -> bytes:
        """The bytes of one image file."""
        table = self.table(shard)
        return self._files.pread(shard, int(table.image_offset[row]), int(table.image_size[row]))

    def caption(self, shard: int, row: int) -> str:
        """One caption.

        Raises:
            ValueError: it is no UTF-8 or has no text; names shard and sample.
        """
        table = self.table(shard)
        data = self._files.pread(
            shard, int(table.caption_offset[row]), int(table.caption_size[row])
        )
        try:
            return self.fields.caption_text(data)
        except ValueError as error:
            raise ValueError(
                f"cannot read the caption of {self.name(shard, row)}: {error}. Make an index that "
                f"leaves such samples out: {INDEX_COMMAND} {self.shards[shard]}"
            ) from error

    def name(self, shard: int, row: int) -> str:
        """Shard and key of a sample, for messages."""
        return f"sample '{self.table(shard).keys()[row]}' of shard {self.shards[shard]}"

    def read(self, request: Request, with_content: bool = False) -> EncodedBatch:
        """Fetch the images and captions of a request and tokenize the captions.

        Args:
            request: which samples.
            with_content: whether the batch says which pictures and captions are the same.
        """
        pairs = list(zip(request.samples.shard.tolist(), request.samples.row.tolist(), strict=True))
        files = [self.image(shard, row) for shard, row in pairs]
        captions = [self.caption(shard, row) for shard, row in pairs]
        content = None
        if with_content:
            ids = [
                (image_id(data), caption_id(text))
                for data, text in zip(files, captions, strict=True)
            ]
            content = torch.tensor(ids, dtype=torch.int64)
        images = [
            self._prepare(shard, row, data) for (shard, row), data in zip(pairs, files, strict=True)
        ]
        tokens, lengths = tokenize_with_lengths(captions, self.context_length)
        # Tokens after end-of-text change neither the loss nor a gradient: cut them off.
        return EncodedBatch(request, images, tokens[:, : int(lengths.max())], lengths, content)

    def close(self) -> None:
        """Close the shards; the next read opens them again."""
        self._files.close()

    def _prepare(self, shard: int, row: int, data: bytes) -> np.ndarray:
        try:
            return prepare(data)
        except ValueError as error:
            raise broken_image(self, shard, row, error) from error


def broken_image(reader: ShardReader, shard: int, row: int, why: object) -> ValueError:
    """The error for an image that cannot be decoded: which one, and what to do."""
    return ValueError(
        f"cannot decode the image of {reader.name(shard, row)}: {why}. Make an index that leaves "
        f"broken samples out, then resume: {INDEX_COMMAND} {reader.shards[shard]}"
    )


class Prefetcher:
    """Runs ``read`` over requests in background threads and yields results in order.

    Args:
        read: called in the threads; its exceptions surface at the result's turn.
        requests: consumed lazily, ``depth`` ahead.
        threads: how many reads run at a time.
        depth: results held ready or under way.

    Raises:
        ValueError: `threads` or `depth` is below 1.
    """

    def __init__(
        self,
        read: Callable[[Request], EncodedBatch],
        requests: Iterable[Request],
        threads: int,
        depth: int,
    ) -> None:
        threads = whole_number("threads", threads, 1)
        depth = whole_number("depth", depth, 1)
        self._read = read
        self._requests: Iterator[Request] = iter(requests)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="clipfast-read")
        self._pending: deque[Future[EncodedBatch]] = deque()
        for _ in range(depth):
            self._submit()

    def __iter__(self) -> "Prefetcher":
        return self

    def __next__(self) -> EncodedBatch:
        if not self._pending:
            raise StopIteration
        result = self._pending.popleft().result()
        self._submit()
        return result

    def close(self) -> None:
        """Stop reading: what waits is cancelled, what is under way ends and is dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pending.clear()

    def _submit(self) -> None:
        request = next(self._requests, None)
        if request is not None:
            self._pending.append(self._pool.submit(self._read, request))
