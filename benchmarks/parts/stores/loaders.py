"""Loaders that compete: each reads one epoch of the same shards, wherever they are.

Both give what the decoder takes: files of images, and tokens. What is decoded is decoded by the
same decoder, in the same number of threads.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clipfast import storage
from clipfast.data import TrainLoader
from clipfast.data.decode import Decoder
from clipfast.data.encoded import WHOLE, EncodedBatch, Request, encode
from clipfast.data.order import SampleRefs
from clipfast.data.prefetch import Prefetcher
from clipfast.data.prepare import prepare
from clipfast.data.reader import ShardReader
from clipfast.storage import Cache, StoreOptions, storage_of

BATCH, SIZE, CONTEXT = 256, 224, 77
THREADS = 4
# OpenCLIP's own: shards and samples that are shuffled among, and of how many it begins.
_SHARDS, _SAMPLES = (2000, 500), (5000, 1000)
# Of the decoded pictures of a batch, every so many are compared.
_SHOWN = 16


@dataclass(frozen=True)
class Task:
    """What is to be read.

    Attributes:
        shards: Paths or addresses.
        decoded: Whether pictures are decoded.
        endpoint: Of S3; "" where it is not asked.
        cache: A folder for copies; "": none.
        is_full: The folder has a copy of each shard at the start.
        in_flight: Requests under way at a time.
        workers: Processes of webdataset.
    """

    shards: tuple[str, ...] = field(repr=False)
    decoded: bool
    endpoint: str = ""
    cache: str = ""
    is_full: bool = False
    in_flight: int = StoreOptions().in_flight
    workers: int = 1


@dataclass
class Read:
    """What an epoch gave.

    Attributes:
        images: Files, in order.
        captions: Texts, in order.
        crops: A digest of some decoded pictures of each batch; "" where none are.
    """

    images: list[Any] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    crops: str = ""

    def samples(self) -> list[bytes]:
        """A digest of each sample."""
        return [
            hashlib.blake2b(bytes(image) + b"\0" + text.encode(), digest_size=16).digest()
            for image, text in zip(self.images, self.captions, strict=True)
        ]


def clipfast(task: Task) -> Iterator[Read]:
    """An epoch of ours: once what is yielded first is there, its time begins."""
    cache = Cache(task.cache, 100 << 30) if task.cache else None
    options = StoreOptions(endpoint=task.endpoint, in_flight=task.in_flight)
    storage.configure(options, cache)
    if cache is not None and task.is_full:
        _fill(cache, task.shards)
    loader = TrainLoader(list(task.shards), SIZE, BATCH, threads=THREADS)
    count = loader.batches_per_epoch
    requests = itertools.islice(loader._requests(0), count)
    yield Read()
    read = Read()
    prefetcher = Prefetcher(loader.reader.read, requests, threads=THREADS, depth=THREADS)
    with loader._ahead(), closing(loader.reader), closing(prefetcher):
        _take(_counted(prefetcher, loader), loader.reader, task.decoded, read)
    yield read


def _fill(cache: Cache, shards: Sequence[str]) -> None:
    for path in shards:
        stat = storage_of(path).stat(path)
        if cache.find(path, stat, [(0, stat.size)]) is None:
            with storage_of(path).open(path, stat) as reader:
                assert cache.fetch(path, stat, reader), f"{path} was not copied"


def webdataset(task: Task) -> Iterator[Read]:
    """An epoch by the stages that OpenCLIP's training program builds; else as ``clipfast``."""
    import webdataset as wds

    pipeline = wds.DataPipeline(
        wds.SimpleShardList(list(task.shards)),
        wds.detshuffle(bufsize=_SHARDS[0], initial=_SHARDS[1]),
        wds.split_by_worker,
        wds.tarfile_to_samples(handler=wds.warn_and_continue),
        wds.shuffle(_SAMPLES[0], initial=_SAMPLES[1]),
        wds.select(_is_whole),
        wds.rename(image="jpg;png;jpeg;webp", text="txt"),
        wds.to_tuple("image", "text"),
        wds.batched(BATCH, partial=True, collation_fn=list),
    )
    loader = wds.WebLoader(pipeline, batch_size=None, shuffle=False, num_workers=task.workers)
    yield Read()
    read = Read()
    _take(map(_encoded, loader), ShardReader([]), task.decoded, read)
    yield read


def _is_whole(sample: dict[str, Any]) -> bool:
    return "txt" in sample and bool({"jpg", "png", "jpeg", "webp"} & sample.keys())


def _counted(batches: Iterable[EncodedBatch], loader: TrainLoader) -> Iterator[EncodedBatch]:
    """What fetches into a cache goes by where the loader stands."""
    for batch in batches:
        yield batch
        loader._consumed += 1


def _encoded(samples: Sequence[tuple[bytes, bytes]]) -> EncodedBatch:
    count = len(samples)
    nowhere = np.zeros(count, np.int64)
    crops = np.tile(np.array([0.95, 0.5, 0.5], np.float32), (count, 1))
    request = Request(SampleRefs(nowhere, nowhere), crops)
    images = [prepare(image) for image, _ in samples]
    texts = [text.decode() for _, text in samples]
    return encode(request, images, [WHOLE] * count, texts, CONTEXT)


def _take(batches: Iterable[EncodedBatch], reader: ShardReader, decoded: bool, read: Read) -> None:
    if not decoded:
        for batch in batches:
            read.images += batch.images
            read.captions += batch.captions
        return
    digest = hashlib.blake2b()
    threads = len(os.sched_getaffinity(0))
    with closing(
        Decoder(iter(batches), reader, BATCH, SIZE, torch.device("cpu"), threads)
    ) as decoder:
        for one in decoder:
            read.images += one.encoded.images
            read.captions += one.encoded.captions
            digest.update(one.crops[::_SHOWN].contiguous().numpy().tobytes())
    read.crops = digest.hexdigest()


def everything(folder: Path) -> list[bytes]:
    """A digest of each sample of a folder of shards.

    Args:
        folder: With tars and their indexes.
    """
    shards = sorted(str(path) for path in folder.glob("*.tar"))
    read = Read()
    with closing(ShardReader(shards)) as reader:
        for shard in range(len(shards)):
            for row in range(len(reader.table(shard))):
                read.images.append(prepare(reader.image(shard, row)))
                read.captions.append(reader.caption(shard, row))
    return read.samples()


LOADERS = {"clipfast": clipfast, "webdataset": webdataset}
