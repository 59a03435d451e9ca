"""Loaders that compete: each gives batches of images and tokens of the same shards.

``dataloader`` is torch's DataLoader over the samples, with OpenCLIP's transform and its tokenizer
in as many workers as there are cores. ``no-tokens`` is the same without the tokenizer.
``webdataset`` has the stages that OpenCLIP's training program builds, shuffled among 1,000 samples.
"""

from __future__ import annotations

import importlib.metadata
import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.peers import import_open_clip
from clipfast.data import TrainLoader
from clipfast.data.reader import ShardReader

Batch = tuple[Tensor, Tensor | None]
SCALE = (0.9, 1.0)


@dataclass(frozen=True)
class Setting:
    """What a contender is given.

    Attributes:
        shards: Paths.
        image_size: S, pixels.
        batch: Samples of a batch.
        cores: Processors, and threads or workers.
        device: Where batches are wanted.
    """

    shards: Sequence[str] = field(repr=False)
    image_size: int
    batch: int
    cores: int
    device: str = "cpu"


def train_loader(setting: Setting, decode: Literal["exact", "scaled"] = "exact") -> TrainLoader:
    """Ours."""
    return TrainLoader(
        list(setting.shards),
        setting.image_size,
        setting.batch,
        scale=SCALE,
        decode=decode,
        threads=setting.cores,
        device=setting.device,
    )


def clipfast(
    setting: Setting, decode: Literal["exact", "scaled"] = "exact"
) -> Generator[Batch, None, None]:
    """Batches of ours."""
    with closing(iter(train_loader(setting, decode))) as batches:
        for batch in batches:
            yield batch.images, batch.tokens


class _Samples(Dataset):
    """Every sample of the shards, again and again."""

    def __init__(self, setting: Setting, transform: Any, tokenizer: Any) -> None:
        self._reader = ShardReader(setting.shards)
        self._places = [
            (shard, row)
            for shard in range(len(setting.shards))
            for row in range(len(self._reader.table(shard)))
        ]
        self._transform, self._tokenizer = transform, tokenizer

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, i: int) -> Any:
        import io

        from PIL import Image

        place = self._places[i % len(self._places)]
        with Image.open(io.BytesIO(self._reader.image(*place))) as image:
            pixels = self._transform(image.convert("RGB"))
        if self._tokenizer is None:
            return pixels
        return pixels, self._tokenizer(self._reader.caption(*place))[0]


def _transform(setting: Setting) -> Any:
    open_clip = import_open_clip()
    return open_clip.transform.image_transform(setting.image_size, is_train=True)


def dataloader(setting: Setting, with_tokens: bool = True) -> Generator[Batch, None, None]:
    """Batches of torch's DataLoader."""
    tokenizer = import_open_clip().get_tokenizer("ViT-B-32") if with_tokens else None
    loader = DataLoader(
        _Samples(setting, _transform(setting), tokenizer),
        batch_size=setting.batch,
        num_workers=setting.cores,
    )
    yield from _moved(iter(loader), setting, with_tokens)


def webdataset(setting: Setting) -> Generator[Batch, None, None]:
    """Batches of webdataset's pipeline."""
    import webdataset

    tokenizer = import_open_clip().get_tokenizer("ViT-B-32")
    pipeline = webdataset.DataPipeline(
        webdataset.ResampledShards(list(setting.shards)),
        webdataset.tarfile_to_samples(),
        webdataset.shuffle(1000, initial=500),
        webdataset.decode("pilrgb"),
        webdataset.rename(image="jpg;png;jpeg;webp", text="txt"),
        webdataset.map_dict(image=_transform(setting), text=partial(_first, tokenizer)),
        webdataset.to_tuple("image", "text"),
        webdataset.batched(setting.batch, partial=False),
    )
    loader = webdataset.WebLoader(
        pipeline, batch_size=None, shuffle=False, num_workers=setting.cores
    )
    yield from _moved(iter(loader), setting, True)


def _first(tokenizer: Any, text: str) -> Tensor:
    return tokenizer(text)[0]


def _moved(
    batches: Iterator[Any], setting: Setting, with_tokens: bool
) -> Generator[Batch, None, None]:
    try:
        for batch in batches:
            images, tokens = batch if with_tokens else (batch, None)
            yield images.to(setting.device), tokens
    finally:
        # Workers end with their iterator.
        del batches


@dataclass(frozen=True)
class Contender:
    """One way to make batches.

    Attributes:
        key: For ``--contenders``.
        title: As in the table; ``{OpenCLIP}`` and ``{webdataset}`` get their versions.
        open: Batches without end; closing them ends threads and workers.
    """

    key: str
    title: str
    open: Callable[[Setting], Generator[Batch, None, None]]

    @property
    def is_ours(self) -> bool:
        return self.key.startswith("clipfast")

    @property
    def name(self) -> str:
        """The title with versions of what is installed."""
        versions = {
            told: f"{told} {importlib.metadata.version(package)}"
            for told, package in (("OpenCLIP", "open_clip_torch"), ("webdataset", "webdataset"))
            if f"{{{told}}}" in self.title
        }
        return self.title.format(**versions)


CONTENDERS = {
    each.key: each
    for each in (
        Contender("clipfast", "clipfast", clipfast),
        Contender("clipfast-scaled", "clipfast, scaled", partial(clipfast, decode="scaled")),
        Contender("dataloader", "{OpenCLIP}", dataloader),
        Contender("no-tokens", "{OpenCLIP}, no tokens", partial(dataloader, with_tokens=False)),
        Contender("webdataset", "{webdataset}", webdataset),
    )
}


def captions_of(setting: Setting, places: Sequence[tuple[int, int]]) -> list[str]:
    """The captions of samples, read again.

    Args:
        setting: Whose shards.
        places: Shard and row of each.
    """
    with closing(ShardReader(setting.shards)) as reader:
        return list(itertools.starmap(reader.caption, places))
