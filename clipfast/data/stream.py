"""A batch that is decoded by micro-batch, when its images are asked for.

What scales with the batch is what has to be kept of it: crops as bytes, a quarter of float32, or
files where crops would pass a bound. Whole decoded pictures, and images as a tower reads them, are
those of a few micro-batches.

    batch n        first pass                    second pass
                   0   1   2   3   loss          0   1   2   3   update
    given up                                     0   1   2   3
    decoded                                      0   1   2   3        of batch n + 1

A micro-batch that the second pass has seen makes room for one of the next batch. So decoding runs
beside the second pass, and the first finds its micro-batches decoded.

Shapes: M micro-batch, k micro-batches per share, S image size.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from clipfast.data.batch import ImageTextBatch
from clipfast.data.decode import DecodedBatch
from clipfast.data.encoded import EncodedBatch, Skipped
from clipfast.data.parted import PartedBatch

# Micro-batches that are asked to be decoded again before their turn: as many as the decoder takes
# at a time, and one that is waited for.
_AHEAD = 3


@dataclass
class _Part:
    """A micro-batch between its first decoding and its last use.

    Attributes:
        encoded: where it came from; without its files where the crops are kept.
        crops: ``[M, S, S, 3]`` uint8; None where it is to be decoded again.
        keeps: the crops stay until the last use.
        counted: bytes of them that count against the bound.
        is_wanted: it is on its way through the decoder again.
        uses: how often it was handed out.
    """

    encoded: EncodedBatch
    crops: Tensor | None
    keeps: bool
    counted: int
    is_wanted: bool = False
    uses: int = 0

    def give_up(self) -> int:
        """Free what it holds, which nobody asks for any more.

        Returns:
            Bytes that count no more.
        """
        freed, self.counted = self.counted, 0
        self.crops, self.keeps = None, False
        self.encoded = _without_files(self.encoded)
        return freed


class Jobs:
    """What the decoder is given: what comes of the shards, and what it shall decode once more.

    It knows nothing of the decoder that reads it, see ``clipfast.data.decode``.

    Args:
        source: micro-batches in order.
    """

    def __init__(self, source: Iterator[EncodedBatch]) -> None:
        self._source = source
        self._again: deque[_Part] = deque()
        self._given: deque[_Part | None] = deque()

    def __iter__(self) -> "Jobs":
        return self

    def __next__(self) -> EncodedBatch:
        part = self._again.popleft() if self._again else None
        encoded = next(self._source) if part is None else part.encoded
        self._given.append(part)
        return encoded

    def want(self, part: _Part) -> None:
        """Have a part decoded again, before anything new."""
        part.is_wanted = True
        self._again.append(part)

    def want_no_more(self) -> None:
        """Forget what is not on its way yet."""
        self._again.clear()

    def answered(self) -> _Part | None:
        """The part that the decoder's next result belongs to; None where it is a new one."""
        return self._given.popleft()


class Stream:
    """Hands out the micro-batches of one share after another, each as often as it is asked for.

    Args:
        jobs: what the decoder reads.
        decoded: the decoder's results.
        count: k.
        keep_bytes: of crops that are kept where they were made. Beyond them a CPU keeps the files
            where those are smaller, and decodes them again, which gives the same bits. A GPU's
            decoders promise no such thing: there the crops go into pinned memory of the host.
        finish: makes a batch of a part and its crops.
        tell: called with the broken samples that were met on the way to a part.
    """

    def __init__(
        self,
        jobs: Jobs,
        decoded: Iterator[DecodedBatch],
        count: int,
        keep_bytes: int,
        finish: Callable[[EncodedBatch, Tensor], ImageTextBatch],
        tell: Callable[[Sequence[Skipped]], None],
    ) -> None:
        self._count = count
        self._jobs = jobs
        self._decoded = decoded
        self._keep_bytes = keep_bytes
        self._finish = finish
        self._tell = tell
        self._number = -1
        self._passes: int | None = None
        self._current: list[_Part] = []
        self._ahead: deque[_Part] = deque()
        self._kept_bytes = self._crop_bytes = self._file_bytes = 0
        self._on_gpu = False
        self._failure: Exception | None = None

    def next_batch(self) -> PartedBatch:
        """The next share; the one before it is over."""
        # Broken samples of parts that nobody asked for count too.
        while self._number >= 0 and len(self._current) < self._count:
            self._receive()
        for part in self._current:
            self._kept_bytes -= part.give_up()
        self._current.clear()
        self._jobs.want_no_more()
        self._number += 1
        self._passes = None
        # A result may be one of those that are decoded again.
        while not self._ahead:
            self._decode()
        request = self._ahead[0].encoded.request
        return PartedBatch(
            self._count,
            partial(self._part, self._number),
            partial(self._will_pass, self._number),
            request.epoch,
            request.index,
        )

    def close(self) -> None:
        """Forget everything."""
        self._number += 1
        self._decoded, self._failure = iter(()), None
        self._current.clear()
        self._ahead.clear()

    def _will_pass(self, number: int, passes: int | None) -> None:
        """How often each part of a batch will be asked for; see ``ImageTextBatch.parts``."""
        self._require(number)
        self._passes = passes

    def _part(self, number: int, m: int) -> ImageTextBatch:
        """Micro-batch m of a batch.

        Args:
            number: of the batch, counted from 0.
            m: from 0 to k - 1.

        Raises:
            RuntimeError: the batch is over, or this part of it.
        """
        self._require(number)
        while len(self._current) <= m:
            self._receive()
        part = self._current[m]
        if part.uses == self._passes:
            raise RuntimeError(
                f"micro-batch {m} was asked for once more than the {part.uses} times that "
                f"parts({self._count}, passes={part.uses}) said"
            )
        if part.uses:
            self._want_from(m)
        while part.crops is None:
            self._decode()
        part.uses += 1
        batch = self._finish(part.encoded, part.crops)
        if part.uses == self._passes:
            self._kept_bytes -= part.give_up()
        elif not part.keeps:
            part.crops = None
        if m + 1 == self._count and part.uses == 1 and self._passes:
            self._want_from(0)
        self._fill()
        return batch

    def _require(self, number: int) -> None:
        if number != self._number:
            raise RuntimeError(
                "this batch is over: its micro-batches can be asked for until the loader's "
                "iterator hands out the next batch, ends or is let go. Keep the iterator and take "
                "them before, or use a TrainLoader without micro_batch"
            )

    def _receive(self) -> None:
        """One part more of this batch."""
        while not self._ahead:
            self._decode()
        part = self._ahead.popleft()
        self._current.append(part)
        self._tell(part.encoded.skipped)

    def _want_from(self, m: int) -> None:
        """Have those decoded again that will be asked for soon."""
        for part in self._current[m : m + _AHEAD]:
            if part.crops is None and not part.is_wanted and part.uses != self._passes:
                self._jobs.want(part)

    def _fill(self) -> None:
        """Decode one part of the next batch, where there is room for its crops."""
        kept = sum(part.keeps for part in (*self._current, *self._ahead))
        if kept < self._count and self._keeps_next():
            # What fails here belongs to the next batch, and is told when that is asked for.
            with suppress(Exception):
                self._decode()

    def _keeps_next(self) -> bool:
        """Whether the crops of one part more, like the last one, are kept."""
        has_room = self._kept_bytes + self._crop_bytes <= self._keep_bytes
        return has_room or self._on_gpu or self._crop_bytes <= self._file_bytes

    def _decode(self) -> None:
        """Take the decoder's next result."""
        if self._failure is not None:
            raise self._failure
        try:
            result = next(self._decoded)
        except Exception as error:
            # The decoder is dead: all that is asked for from now on fails by this.
            self._failure = error
            raise
        crops, encoded = result.crops, result.encoded
        again = self._jobs.answered()
        if again is not None:
            again.crops, again.is_wanted = crops, False
            return
        self._crop_bytes, self._on_gpu = crops.nbytes, crops.device.type == "cuda"
        self._file_bytes = sum(image.nbytes for image in encoded.images)
        counted = 0
        if keeps := self._keeps_next():
            encoded = _without_files(encoded)
            if self._on_gpu and self._kept_bytes + crops.nbytes > self._keep_bytes:
                crops = _in_pinned_memory(crops)
            else:
                counted = crops.nbytes
        self._kept_bytes += counted
        self._ahead.append(_Part(encoded, crops, keeps, counted))


def _without_files(encoded: EncodedBatch) -> EncodedBatch:
    return replace(encoded, images=[])


def _in_pinned_memory(crops: Tensor) -> Tensor:
    """On the host, once the GPU comes to it: nothing waits."""
    return torch.empty(crops.shape, dtype=crops.dtype, pin_memory=True).copy_(
        crops, non_blocking=True
    )
