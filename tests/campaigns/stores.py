"""A store that fails: loaders read over epochs, with and without cache.

S3's protocol, served by moto, behind a proxy that spoils answers: resets, 503, 429, answers that
are cut, too short, stall, or name another ETag. In the middle of an epoch the loaders are dropped,
and their state goes on with another number of ranks. Batches are compared with those of files.
"""

import itertools
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

from clipfast import storage
from clipfast.data import TrainLoader, index, shards
from clipfast.storage import Cache, StoreOptions, clients
from tests.campaigns.program import Setting, main
from tests.campaigns.table import Table
from tests.storage.conftest import SECRETS, write_shard
from tests.storage.motoserver import served
from tests.storage.proxy import Proxy

COUNT = 240
_SHARDS, _SAMPLES, _BATCH = 8, 48, 12
# Ranks that read one after another, each for so many batches.
_TURNS = ((1, 13), (2, 21), (3, 17), (1, 29))
# Those that take a timeout are few.
_QUICK = ("reset", "503", "429", "cut", "short", "etag", "no etag")
_SLOW = ("stall", "half")


def campaign(setting: Setting) -> Table:
    """Rounds over the same batches, until so many faults have happened.

    Args:
        setting: of the campaign; its count is that of faults.
    """
    table = Table("stores")
    clients._READ = "500ms"
    folder = setting.folder / "shards"
    _make(folder)
    local = str(folder / f"{{000..{_SHARDS - 1:03}}}.tar")
    expected = list(_batches(local, itertools.repeat(None)))
    met: Counter[str] = Counter()
    os.environ.update(SECRETS)
    with served(folder, SECRETS) as proxy:
        options = StoreOptions(endpoint=f"http://127.0.0.1:{proxy.port}", patience=120)
        for number in itertools.count():
            cached = number % 2 == 1
            cache = Cache(str(setting.folder / f"cache{number}"), 10**9) if cached else None
            storage.configure(options, cache)
            proxy.met.clear()
            far = f"s3://shards/set/{{000..{_SHARDS - 1:03}}}.tar"
            kind = "with a cache" if cached else "by range"
            began = time.monotonic()
            wrong = _compare(_batches(far, _faults(proxy, setting.random)), expected)
            proxy.faults.clear()
            faults = {name: proxy.met[name] for name in (*_QUICK, *_SLOW) if proxy.met[name]}
            met.update(faults)
            said = f"{len(expected)} batches in {time.monotonic() - began:.0f} s"
            for name, times in faults.items():
                for _ in range(times):
                    table.add(f"{kind}: {name}", f"round {number}", not wrong, wrong or said)
            if wrong and not faults:
                table.add(kind, f"round {number}", False, wrong)
            if wrong or sum(met.values()) >= setting.count:
                break
    storage.configure(StoreOptions())
    return table


def _faults(proxy: Proxy, draw: random.Random) -> Iterator[None]:
    """Before each batch the next answers are spoilt."""
    while True:
        chosen: list[str | None] = [None, draw.choice(_QUICK)]
        if draw.random() < 0.05:
            chosen.append(draw.choice(_SLOW))
        if not proxy.faults:
            proxy.spoil(chosen)
        yield None


def _batches(patterns: str, before: Iterator[None]) -> Iterator[tuple[object, ...]]:
    """The batches of all turns, each as one, whatever the number of ranks."""
    state = None
    for ranks, steps in _TURNS:
        next(before)
        loaders = [
            TrainLoader(patterns, 16, _BATCH, seed=5, window=64, rank=rank, world_size=ranks)
            for rank in range(ranks)
        ]
        if state is not None:
            for loader in loaders:
                loader.load_state_dict(state)
        streams = [iter(loader) for loader in loaders]
        for _ in range(steps):
            next(before)
            parts = [next(stream) for stream in streams]
            tokens = [row.tolist() for part in parts for row in _captions(part)]
            yield parts[0].epoch, parts[0].index, torch.cat([p.images for p in parts]), tokens
        state = loaders[0].state_dict()
        for stream in streams:
            stream.close()


def _captions(part: object) -> Iterator[torch.Tensor]:
    """Without padding: that of a rank is as long as its longest caption."""
    for row, length in zip(part.tokens, part.lengths.tolist(), strict=True):  # type: ignore[attr-defined]
        yield row[:length]


def _compare(found: Iterator[tuple[object, ...]], expected: list[tuple[object, ...]]) -> str:
    """What is wrong; "" where nothing is."""
    number = -1
    try:
        for number, one in enumerate(found):
            other = expected[number]
            if one[:2] != other[:2] or one[3] != other[3] or not torch.equal(one[2], other[2]):  # type: ignore[arg-type]
                return f"batch {number} is another one"
    except Exception as error:
        return f"batch {number + 1}: {type(error).__name__}: {error}"
    return "" if number + 1 == len(expected) else f"{number + 1} batches of {len(expected)}"


def _make(folder: Path) -> None:
    folder.mkdir()
    for number in range(_SHARDS):
        write_shard(folder / f"{number:03}.tar", number, _SAMPLES)
    index.index_shards(shards.expand(str(folder / "*.tar")), workers=1, dali=False, progress=False)


if __name__ == "__main__":
    main({"stores": (campaign, COUNT)}, __doc__)
