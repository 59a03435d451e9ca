"""Batches of images and tokens: an endless shuffled stream to train on, one pass to evaluate."""

import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from clipfast.arguments import whole_number
from clipfast.data.ahead import Ahead
from clipfast.data.arguments import (
    MOST_PIXELS_PER_SIDE,
    MOST_THREADS,
    check_batch,
    check_device,
    check_dtype,
    check_micro_batch,
    check_place,
    check_position,
    check_scale,
)
from clipfast.data.batch import ImageTextBatch
from clipfast.data.caption_lengths import mean_tokens
from clipfast.data.catalogue import look_up, together_for
from clipfast.data.decode import Decoder
from clipfast.data.encoded import EncodedBatch, Request, Skipped
from clipfast.data.fields import FIELDS, Fields, check_fields
from clipfast.data.fingerprint import fingerprint
from clipfast.data.good_order import GoodOrder
from clipfast.data.order import EpochOrder, MixedOrder
from clipfast.data.pixels import normalised
from clipfast.data.prefetch import Prefetcher
from clipfast.data.reader import ShardReader
from clipfast.data.reasons import reasons_of
from clipfast.data.selection import Selection
from clipfast.data.sidecar import Sidecar
from clipfast.data.skipping import Substitutes, log_skipped
from clipfast.data.sources import Mixing, Patterns, Tally, find_sources, order_of
from clipfast.data.stream import Jobs, Stream
from clipfast.data.together import ALONE, Together
from clipfast.devices import to_device
from clipfast.storage import present_cache, storage_of

# Broken samples that a run bears with where nobody says how many.
MAX_ERRORS = 1000
# Crops of micro-batches that are kept for a second pass: 14,000 pairs at 224 pixels. Of a GPU's
# memory a small share, for the sake of small ones.
_KEEP_BYTES, _SHARE_OF_GPU = 2 << 30, 32
# Batches that are read ahead of the decoder; of micro-batches, at most those of one share.
_READ_AHEAD = 4


class _Loader:
    """What both loaders share: shards, reader threads, decoder."""

    with_content = False
    # None: a broken sample is an error.
    _substitutes: Substitutes | None = None
    _read_ahead = _READ_AHEAD

    def __init__(
        self,
        patterns: Patterns,
        image_size: int,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        threads: int = 4,
        context_length: int = 77,
        fields: Fields = FIELDS,
        select: Selection | str | None = None,
        caption_tables: Sidecar | Mapping[str, Sidecar] | None = None,
        caption_cache: str = "",
        on_wait: Callable[[], None] | None = None,
        together: Together = ALONE,
    ) -> None:
        self._on_wait = on_wait
        self.image_size = whole_number("image_size", image_size, 1, MOST_PIXELS_PER_SIDE)
        self.batch_size = whole_number("batch_size", batch_size, 1)
        self.rank, self.world_size = check_place(rank, world_size)
        self.device = check_device(device)
        self.dtype = check_dtype(dtype)
        self.threads = whole_number("threads", threads, 1, MOST_THREADS)
        self.fields = check_fields(fields)
        self._together = together_for(patterns, together)
        self.sources = self._together.share(partial(find_sources, patterns))
        self.shards = self.sources.shards
        known = look_up(
            self.sources,
            self.fields,
            select=select,
            caption_tables=caption_tables or None,
            caption_cache=caption_cache,
            together=self._together,
            on_wait=on_wait,
        )
        self.selected, self.captions, self._kept = known.selected, known.captions, known.kept
        self.reader = self._make_reader(context_length)

    def _make_reader(self, context_length: int, **options: Any) -> ShardReader:
        choices = None if self.selected is None else self.selected.choices
        options |= {"choices": choices, "captions": self.captions}
        return ShardReader(self.shards, context_length, self.fields, **options)

    def _batches(
        self, requests: Iterator[Request], batch_size: int
    ) -> Generator[ImageTextBatch, None, None]:
        """Batches in order; closing the generator ends threads and closes shards."""
        with (
            closing(self.reader),
            closing(self._prefetcher(requests, self._read_ahead)) as prefetcher,
            closing(self._decoder(prefetcher, batch_size)) as decoder,
        ):
            for decoded in decoder:
                yield self._finish(decoded.encoded, decoded.crops)

    def _decoder(self, source: Iterator[EncodedBatch], batch_size: int) -> Decoder:
        return Decoder(
            source,
            self.reader,
            batch_size,
            self.image_size,
            self.device,
            self.threads,
            self._substitutes,
        )

    def _prefetcher(self, requests: Iterator[Request], depth: int) -> Prefetcher:
        read = partial(
            self.reader.read, with_content=self.with_content, strict=self._substitutes is None
        )
        return Prefetcher(
            read, requests, threads=min(self.threads, depth), depth=depth, on_wait=self._on_wait
        )

    def _finish(self, encoded: EncodedBatch, crops: Tensor) -> ImageTextBatch:
        return ImageTextBatch(
            images=normalised(to_device(crops, self.device), self.dtype),
            tokens=to_device(encoded.tokens, self.device),
            lengths=encoded.lengths,
            epoch=encoded.request.epoch,
            index=encoded.request.index,
            shard=encoded.request.samples.shard,
            row=encoded.request.samples.row,
            content=encoded.content,
            every=encoded.every,
            skipped=encoded.skipped,
        )


class TrainLoader(_Loader):
    """An endless stream of shuffled batches, each sample once per epoch over all ranks.

    The order depends on the seed and the epoch alone (``clipfast.data.order``): global batch k is
    the same set of samples and crops on any number of ranks, so that a run resumes in mid-epoch, on
    more or fewer ranks, and repeats itself exactly. Samples that do not fill a last global batch
    are left out of that epoch; being shuffled anew, others are left out of the next.

    A broken sample ends the stream by an error that names it, or is left out (`on_error`): the next
    good one of the same order takes its place (``clipfast.data.good_order``), whatever the number
    of ranks and threads, and after a resume. Without an index a sample is held to the same rule as
    with one: its caption says something, its image decodes and is within ``Limits``. A shard that
    cannot be read, or changes while it is read, is an error in any case.

    Args:
        patterns: shards; see ``clipfast.data.patterns.expand``. A mapping names sources.
        image_size: side of the square crop, pixels.
        batch_size: the global batch, over all ranks.
        mixing: in which shares an epoch takes samples of the named sources. None: each sample once.
        micro_batch: M, pairs that are decoded at a time; divides a rank's share. Batches are then
            asked for by ``parts(share // M)``, and their memory grows with the share by crops in
            uint8 or by files alone. None: the whole share is decoded at once, and fits into the
            device's memory.
        keep_bytes: of crops that are kept for a second pass, with `micro_batch`. What is beyond is
            decoded again on a CPU, where its files are smaller, and lies in the host's pinned
            memory on a GPU. None: 2 GiB, and no more than a 32nd of a GPU.
        prefetch: batches that are read ahead of the decoder, and kept as files in memory meanwhile.
            None: 4; with `micro_batch` as many micro-batches, and one batch at most.
        seed: of order and crops.
        scale: smallest and largest side of the crop, as fractions of the image's short side.
        window: samples shuffled together, see ``EpochOrder``.
        shuffle: False reads in the order of the shards.
        decode: "exact", or "scaled": JPEGs whose smallest crop is 2, 4 or 8 times `image_size` are
            decoded at a half, a quarter or an eighth (``clipfast.data.scaled``).
        captions: of an image that has several, one that is "drawn" anew in each epoch, by seed,
            epoch and sample; or the "first" that says something.
        on_error: "stop" at a broken sample, or "skip" it.
        max_errors: with "skip", the number of broken samples, each counted once, that this rank
            bears with; one more is an error that names them all.
        on_skip: with "skip", called once with each, as its batch is handed out; None: a warning in
            the log ``clipfast.data.skipping`` names it.

    Keyword Args:
        rank (int): this rank.
        world_size (int): number of ranks; divides ``batch_size``.
        device (torch.device | str): where batches are wanted.
        dtype (torch.dtype): of the images.
        threads (int): CPU threads that decode.
        context_length (int): tokens that a caption is cut to.
        fields (Fields): which members of a sample are image and caption.
        select (Selection | str | None): which samples of which shards are read, or the path of the
            file that says so (``clipfast.data.selection``). What it leaves out is not there: order,
            rows and counts are those of shards that hold the others alone. None: all. Where it has
            weights, an epoch has a sample as often as its weight says; where it chooses captions,
            they count.
        caption_tables (Sidecar | Mapping[str, Sidecar] | None): where captions stand, if not in the
            tars (``clipfast.data.sidecar``), by the names of sources where there are several; ""
            is of those without one. Samples without a caption there are left out, or take their
            own.
        caption_cache (str): folder where they are kept joined with the shards; "": one of this user
            below the machine's temporary folder.
        on_wait (Callable[[], None]): called each second that a batch is waited for, or an index.
        together (Together): ranks of the same arguments, which look at the indexes of shards in
            stores by turns and tell one another; all of them make a loader then. By default this
            process looks at each.

    Raises:
        TypeError: an argument is of another kind; a ``ValueError`` too.
        ValueError: an argument is out of its range, the selection does not fit, the shards hold
            less than one global batch, or one of them or its index is unfit.
        FileNotFoundError: shards are missing; see ``clipfast.data.patterns.expand``.
    """

    def __init__(
        self,
        patterns: Patterns,
        image_size: int,
        batch_size: int,
        *,
        mixing: Mixing | None = None,
        micro_batch: int | None = None,
        keep_bytes: int | None = None,
        prefetch: int | None = None,
        seed: int = 0,
        scale: tuple[float, float] = (0.9, 1.0),
        window: int = 1 << 18,
        shuffle: bool = True,
        decode: Literal["exact", "scaled"] = "exact",
        captions: Literal["drawn", "first"] = "drawn",
        on_error: Literal["stop", "skip"] = "stop",
        max_errors: int = MAX_ERRORS,
        on_skip: Callable[[Skipped], None] | None = None,
        **options: Any,
    ) -> None:
        self.scale = check_scale(scale)
        if decode not in ("exact", "scaled"):
            raise ValueError(f"decode must be 'exact' or 'scaled'; got {decode!r}")
        self.decode = decode
        if captions not in ("drawn", "first"):
            raise ValueError(f"captions must be 'drawn' or 'first'; got {captions!r}")
        self._caption_seed = seed if captions == "drawn" else None
        if on_error not in ("stop", "skip"):
            raise ValueError(f"on_error must be 'stop' or 'skip'; got {on_error!r}")
        max_errors = whole_number("max_errors", max_errors, 0)
        self._prefetch = prefetch and whole_number("prefetch", prefetch, 1)
        self._read_ahead = self._prefetch or _READ_AHEAD
        super().__init__(patterns, image_size, batch_size, **options)
        if self.batch_size % self.world_size:
            raise ValueError(
                f"batch size {self.batch_size} does not divide by {self.world_size} ranks"
            )
        self.order = order_of(
            self.sources,
            self._kept.counts,
            mixing or Mixing(),
            seed=seed,
            window=window,
            shuffle=shuffle,
            units=self._kept.units,
        )
        self.batches_per_epoch = len(self.order) // self.batch_size
        if self.batches_per_epoch == 0:
            raise ValueError(
                reasons_of(self.shards).after(
                    f"{len(self.shards)} shard(s) hold {len(self.order)} samples, less than one "
                    f"global batch of {self.batch_size}: pass more data or a smaller --batch-size"
                )
            )
        self.micro_batch = check_micro_batch(micro_batch, self._local_batch)
        self.keep_bytes = (
            kept_on(self.device)
            if keep_bytes is None
            else whole_number("keep_bytes", keep_bytes, 0)
        )
        check_batch(self.micro_batch, self.image_size, self.dtype, self.device)
        self._fingerprint = self._together.share(
            partial(fingerprint, self.shards, self.order.counts)
        )
        self._tally = Tally(self.order, self.sources, self.batches_per_epoch * self.batch_size)
        self._consumed = 0
        self._found: dict[tuple[int, int], Skipped] = {}
        self._on_skip = on_skip or log_skipped
        self._places = Substitutes(
            self.reader,
            GoodOrder(self.order, self.batch_size),
            self.rank * self._local_batch,
            max_errors,
        )
        self._substitutes = self._places if on_error == "skip" else None

    def _make_reader(self, context_length: int, **options: Any) -> ShardReader:
        options["caption_seed"] = self._caption_seed
        if self.decode == "scaled":
            options |= {"least_side": self.image_size / self.scale[0], "threads": self.threads}
        return super()._make_reader(context_length, **options)

    @property
    def skipped(self) -> list[Skipped]:
        """The broken samples that were left out so far, each once."""
        return list(self._found.values())

    @property
    def contents(self) -> str:
        """What there is, for a person."""
        words = f"{len(self.order)} pairs in {len(self.shards)} shard(s)"
        if isinstance(self.order, MixedOrder):
            words += f": {self._shares()}"
        if self._kept.units is not None:
            words += f", by weight from {int(self._kept.counts.sum())}"
        if self.selected is not None:
            words += f", {self.selected}"
        return words if self.captions is None else f"{words}; {self.captions}"

    def source_samples(self) -> dict[str, int]:
        """Samples of each named source that batches have taken since the beginning, over all
        ranks."""
        epoch, index = divmod(self._consumed, self.batches_per_epoch)
        return self._tally.count(epoch, index * self.batch_size)

    def decode_by(self, micro_batch: int) -> None:
        """Decode by micro-batch from the next iteration on. No shard is looked at again.

        Args:
            micro_batch: M, see `TrainLoader`.

        Raises:
            ValueError: it does not divide a rank's share, or its images are too many.
        """
        self.micro_batch = check_micro_batch(micro_batch, self._local_batch)
        check_batch(self.micro_batch, self.image_size, self.dtype, self.device)

    def caption_tokens(self) -> int:
        """The mean length of some captions, a tenth added: batches differ."""
        return mean_tokens(self.reader)

    def learn(self, skipped: Iterable[Skipped]) -> None:
        """Leave out samples too that another rank has met.

        It changes no batch: a rank that comes to one of them would leave it out in any case.

        Args:
            skipped: of a loader of the same shards.
        """
        skipped = list(skipped)
        self._places.learn(skipped)
        for each in skipped:
            self._found.setdefault((each.shard, each.row), each)

    def __iter__(self) -> Generator[ImageTextBatch, None, None]:
        """Batches from where the loader stands, without end."""
        requests = self._requests(self._consumed)
        is_whole = self.micro_batch == self._local_batch
        batches = (
            self._batches(requests, self._local_batch) if is_whole else self._streamed(requests)
        )
        with closing(batches), self._ahead():
            for batch in batches:
                self._consumed = batch.epoch * self.batches_per_epoch + batch.index + 1
                if is_whole:
                    self._tell(batch.skipped)
                yield batch

    def _ahead(self) -> AbstractContextManager[object]:
        """What fetches shards into a cache, where there is one and they are in a store."""
        cache = present_cache()
        if cache is None or not any(storage_of(each).is_remote for each in self.shards):
            return nullcontext()
        reads_all = self.selected is None and self.captions is None
        return closing(
            Ahead(
                cache,
                self.shards,
                self._shards_of_batches(self._consumed),
                lambda: self._consumed,
                f"{id(self)}",
                version=self.reader.version,
                ranges=None if reads_all else self.reader.ranges,
            )
        )

    def _shards_of_batches(self, first: int) -> Iterator[tuple[int, np.ndarray]]:
        for number in itertools.count(first):
            epoch, index = divmod(number, self.batches_per_epoch)
            start = index * self.batch_size + self.rank * self._local_batch
            samples = self.order.at(epoch, np.arange(start, start + self._local_batch))
            yield number, np.unique(samples.shard)

    def _streamed(self, requests: Iterator[Request]) -> Generator[ImageTextBatch, None, None]:
        """Batches that are decoded by micro-batch; else as ``_batches``."""
        parts = self._local_batch // self.micro_batch
        depth = self._prefetch * parts if self._prefetch else min(parts, _READ_AHEAD)
        with closing(self.reader), closing(self._prefetcher(requests, depth)) as prefetcher:
            jobs = Jobs(prefetcher)
            with (
                closing(self._decoder(jobs, self.micro_batch)) as decoder,
                closing(
                    Stream(jobs, decoder, parts, self.keep_bytes, self._finish, self._tell)
                ) as stream,
            ):
                while True:
                    yield stream.next_batch()

    def _tell(self, skipped: Iterable[Skipped]) -> None:
        for each in skipped:
            if (each.shard, each.row) not in self._found:
                self._found[each.shard, each.row] = each
                self._on_skip(each)

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, and what that depends on."""
        epoch, index = divmod(self._consumed, self.batches_per_epoch)
        known = {name: value for name, value in self._identity().items() if value is not None}
        state = {"epoch": epoch, "index": index, **known}
        if self._found:
            state["skipped"] = [
                [each.shard, each.row, each.key, each.reason] for each in self.skipped
            ]
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the batches a saved state had handed out, on any number of ranks.

        Raises:
            ValueError: data, batch size, seed or window changed, so the position has no meaning.
        """
        # States of before there was a fingerprint have none.
        check_position(state, self._identity(), may_lack="shards")
        self._consumed = state["epoch"] * self.batches_per_epoch + state["index"]
        self.learn(
            Skipped(shard, row, self.shards[shard], key, reason)
            for shard, row, key, reason in state.get("skipped", ())
        )

    def _identity(self) -> dict[str, Any]:
        return {
            "shards": self._fingerprint,
            "samples": len(self.order),
            "batch_size": self.batch_size,
            "seed": self.order.seed,
            "window": self.order.window,
            "mixture": self._shares() if isinstance(self.order, MixedOrder) else None,
            "selection": None if self.selected is None else self.selected.digest[:16],
            "captions": None if self.captions is None else self.captions.digest,
        }

    def _shares(self) -> str:
        """What an epoch takes of each source, and what there is."""
        assert isinstance(self.order, MixedOrder)
        return ", ".join(
            f"{share.name} {share.samples} of {share.counts.sum()}" for share in self.order.shares
        )

    @property
    def _local_batch(self) -> int:
        return self.batch_size // self.world_size

    def _requests(self, first: int) -> Iterator[Request]:
        for number in itertools.count(first):
            epoch, index = divmod(number, self.batches_per_epoch)
            place = index * self.batch_size + self.rank * self._local_batch
            for part in range(self._local_batch // self.micro_batch):
                start = place + part * self.micro_batch
                crops = self.order.crops(epoch, start, start + self.micro_batch)
                low, high = self.scale
                crops[:, 0] = low + (high - low) * crops[:, 0]
                yield self._places.request(epoch, index, crops, part)


def kept_on(device: torch.device, memory: int | None = None) -> int:
    """Bytes of crops that are kept for a second pass.

    Args:
        device: where they are.
        memory: of a GPU that is only planned for; None asks the one that is here.
    """
    if device.type == "cpu":
        return _KEEP_BYTES
    total = memory or torch.cuda.get_device_properties(device).total_memory
    return min(_KEEP_BYTES, total // _SHARE_OF_GPU)


class EvalLoader(_Loader):
    """One pass over all samples in the order of the shards, centre crops, no sample dropped.

    Args:
        patterns: shards; see ``clipfast.data.patterns.expand``.
        image_size: side of the square crop, pixels.
        batch_size: of this rank; the last batch may be smaller, and is the only one where this
            exceeds the samples. Its images fit into the device's memory.
        limit: read only so many samples, the first of all ranks together; None: all.

    Keyword Args:
        rank (int): this rank reads one contiguous part.
        world_size (int): number of parts; sizes differ by one sample at most.
        device (torch.device | str): see `TrainLoader`, as the others.
        dtype (torch.dtype): of the images.
        threads (int): CPU threads that decode.
        context_length (int): tokens that a caption is cut to.
        fields (Fields): which members of a sample are image and caption.
        select (Selection | str | None): which samples are read, each once; see `TrainLoader`.
        caption_tables (Sidecar | Mapping[str, Sidecar] | None): see `TrainLoader`.
        caption_cache (str): see `TrainLoader`.
        on_wait (Callable[[], None]): called each second that a batch is waited for.
        together (Together): see `TrainLoader`.

    Raises:
        TypeError: an argument is of another kind; a ``ValueError`` too.
        ValueError: an argument is out of its range, or a selection, a shard or its index is unfit.
        FileNotFoundError: shards are missing; see ``clipfast.data.patterns.expand``.
    """

    with_content = True

    def __init__(
        self,
        patterns: str | Sequence[str],
        image_size: int,
        batch_size: int,
        *,
        limit: int | None = None,
        **options: Any,
    ) -> None:
        if limit is not None:
            limit = whole_number("limit", limit, 0, why="None reads all")
        super().__init__(patterns, image_size, batch_size, **options)
        self.order = EpochOrder(self._kept.counts, shuffle=False)
        total = len(self.order) if limit is None else min(len(self.order), limit)
        self.start, self.stop = (
            total * part // self.world_size for part in (self.rank, self.rank + 1)
        )
        # DALI allocates for each image that a batch may have, before the first comes.
        self._largest_batch = max(1, min(self.batch_size, len(self)))
        check_batch(self._largest_batch, self.image_size, self.dtype, self.device)

    def __len__(self) -> int:
        """Samples of this rank."""
        return self.stop - self.start

    def __iter__(self) -> Generator[ImageTextBatch, None, None]:
        return self._batches(self._requests(), self._largest_batch)

    def _requests(self) -> Iterator[Request]:
        for start in range(self.start, self.stop, self.batch_size):
            stop = min(start + self.batch_size, self.stop)
            crops = np.tile(np.array([1.0, 0.5, 0.5], np.float32), (stop - start, 1))
            yield Request(self.order.locate(0, start, stop), crops)
