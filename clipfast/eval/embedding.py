"""Features of whole shards on disk, for searches, probes and the cleaning of data.

    features/embed.json                       what they are of
    features/img_emb/img_emb_00000.npy        [n, D] float16, of length 1
    features/text_emb/text_emb_00000.npy      the same of the captions
    features/metadata/metadata_00000.csv      shard, key, caption and error of each row

Each shard is one part. Its table is written last, so a part that has one is whole, and a run that
was cut off goes on with the next. An image that does not decode has a row of NaN, and its error
says why. The layout is clip-retrieval's.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from clipfast.data import ShardReader
from clipfast.data.patterns import expand
from clipfast.eval.encoding import ImageEncoder
from clipfast.eval.hashes import image_hash, text_hash
from clipfast.files import whole_file, write_whole

ABOUT = "embed.json"
COLUMNS = ("shard", "key", "caption", "error")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Embedded:
    """What one call did, over all ranks.

    Attributes:
        parts: shards whose features are there now.
        before: of these, those that were there already.
        pairs: of the others.
        unreadable: images of the others that do not decode.
    """

    parts: int
    before: int
    pairs: int
    unreadable: int


def embed(encoder: ImageEncoder, shards: str | Sequence[str], folder: Path) -> Embedded:
    """Write the features of all images and captions of some shards. A collective.

    Ranks take whole shards in turn. Captions are cut to the model's context.

    Args:
        encoder: of the model.
        shards: patterns, as training takes them.
        folder: of the features; made where it is not there.

    Raises:
        ValueError: the folder holds features of other weights or of other shards; a shard cannot
            be read, or a caption is no text.
        OSError: a file cannot be read or written.
    """
    paths = expand(shards)
    about = _about(encoder, paths)
    if encoder.sharing.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        _require_same(folder, about)
        write_whole(folder / ABOUT, json.dumps(about, indent=1).encode())
        for name in ("img_emb", "text_emb", "metadata"):
            (folder / name).mkdir(exist_ok=True)
    sharing = encoder.sharing
    sharing.wait()
    missing = [n for n in range(len(paths)) if not _table(folder, n).exists()]
    sharing.wait()  # Nobody writes before all have looked.
    reader = ShardReader(paths)
    mine = encoder.alone()
    counts = [0, 0]
    for number in tqdm(missing[sharing.rank :: sharing.world_size], "shards", disable=None):
        counts = [a + b for a, b in zip(counts, _part(mine, reader, number, folder), strict=True)]
    pairs, unreadable = (
        sum(column) for column in zip(*sharing.gather_objects(counts), strict=True)
    )
    return Embedded(len(paths), len(paths) - len(missing), pairs, unreadable)


@dataclass(frozen=True)
class _Shard:
    """The images of one shard, as the decoder takes them."""

    reader: ShardReader
    number: int

    @property
    def name(self) -> str:
        return self.reader.shards[self.number]

    def __len__(self) -> int:
        return len(self.reader.table(self.number).keys())

    def encoded(self, i: int, /) -> bytes:
        return self.reader.image(self.number, i)


def _part(encoder: ImageEncoder, reader: ShardReader, number: int, folder: Path) -> tuple[int, int]:
    """Write one part; returns its pairs, and how many images of them do not decode."""
    shard = _Shard(reader, number)
    images = encoder.images(shard)
    unreadable = dict(encoder.unreadable)
    captions = [reader.caption(number, row) for row in range(len(shard))]
    for name, features in (("img_emb", images), ("text_emb", encoder.texts(captions))):
        path = folder / name / f"{name}_{number:05d}.npy"
        with whole_file(path, clean=False) as temporary, temporary.open("wb") as file:
            np.save(file, _half(features))
    keys = reader.table(number).keys()
    with (
        whole_file(_table(folder, number), clean=False) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as text,
    ):
        writer = csv.writer(text)
        writer.writerow(COLUMNS)
        for row, (key, caption) in enumerate(zip(keys, captions, strict=True)):
            writer.writerow([shard.name, key, caption, unreadable.get(row, "")])
    return len(shard), len(unreadable)


def _half(features: Tensor) -> np.ndarray:
    half: np.ndarray = F.normalize(features, dim=1).to(torch.float16).numpy()
    return half


def _table(folder: Path, number: int) -> Path:
    return folder / "metadata" / f"metadata_{number:05d}.csv"


def _about(encoder: ImageEncoder, paths: Sequence[str]) -> dict[str, Any]:
    model = encoder.model
    weights = hashlib.sha256(f"{image_hash(model)}{text_hash(model)}".encode()).hexdigest()
    return {
        "model": model.config.name,
        "weights": weights,
        "width": model.config.embed_dim,
        "preprocess_cfg": encoder.preprocessing.as_openclip(),
        "resize": encoder.resize,
        "precision": str(encoder.dtype).removeprefix("torch."),
        "shards": list(paths),
    }


def _require_same(folder: Path, about: dict[str, Any]) -> None:
    path = folder / ABOUT
    if not path.exists():
        return
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}): name another folder") from error
    for name, value in about.items():
        if not isinstance(there, dict) or there.get(name) != value:
            raise ValueError(
                f"{folder} holds features of another run: {name} differs. Name another folder, or "
                "move this one away"
            )
